#include "core/ops/linear.h"

#include "tests/core/ops/jacobian.h"

namespace ridge {
namespace {

using test::check_vjp;
using test::random_tensor;

TEST(LinearVjp, OddSizesWithBias) {
  check_vjp([](auto& in) { return ops::linear(in[0], in[1], in[2]); },
            {random_tensor({2, 3, 5}, 1), random_tensor({7, 5}, 2), random_tensor({7}, 3)});
}

TEST(LinearVjp, WithoutBias) {
  check_vjp([](auto& in) { return ops::linear(in[0], in[1]); },
            {random_tensor({1, 9}, 1), random_tensor({3, 9}, 2)});
}

TEST(MatmulVjp, PlainAndTransposed) {
  check_vjp([](auto& in) { return ops::matmul(in[0], in[1]); },
            {random_tensor({3, 5}, 1), random_tensor({5, 4}, 2)});
}

TEST(Linear, FrozenWeightGetsNoGradient) {
  Tensor x = random_tensor({2, 3}, 1);
  const Tensor w = random_tensor({4, 3}, 2);
  autograd::set_requires_grad(x, true);
  autograd::backward(ops::linear(x, w), random_tensor({2, 4}, 3));
  EXPECT_TRUE(autograd::grad_of(x).defined());
  EXPECT_FALSE(autograd::grad_of(w).defined());
}

TEST(Linear, Bf16WeightsHaveF32GradientsCloseToF64) {
  const Tensor x = random_tensor({33, 65}, 1), w = random_tensor({17, 65}, 2),
               dy = random_tensor({33, 17}, 3);
  const auto gradient = [&](DType dtype) {
    Tensor weight = w.to(dtype);
    autograd::set_requires_grad(weight, true);
    autograd::backward(ops::linear(x.to(dtype), weight), dy.to(dtype));
    return autograd::grad_of(weight);
  };
  EXPECT_EQ(gradient(DType::bf16).dtype(), DType::f32);
  test::expect_close(gradient(DType::bf16), gradient(DType::f64), 1e-2, "bf16 weight gradient");
}

TEST(Linear, ShapesThatDoNotFitAreNamed) {
  try {
    ops::linear(random_tensor({2, 3}, 1), random_tensor({4, 5}, 2));
    FAIL();
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("[2, 3]"), std::string::npos);
    EXPECT_NE(std::string(e.what()).find("[4, 5]"), std::string::npos);
  }
}

}  // namespace
}  // namespace ridge
