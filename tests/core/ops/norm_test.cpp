#include "core/ops/norm.h"

#include "core/ops/elementwise.h"
#include "tests/core/ops/jacobian.h"

namespace ridge {
namespace {

using test::check_vjp;
using test::random_tensor;

TEST(RmsNormVjp, OddSizes) {
  check_vjp([](auto& in) { return ops::rms_norm(in[0], in[1], 1e-5); },
            {random_tensor({2, 3, 17}, 1), random_tensor({17}, 2)});
}

TEST(RmsNormVjp, OneChannel) {
  check_vjp([](auto& in) { return ops::rms_norm(in[0], in[1], 1e-2); },
            {random_tensor({5, 1}, 1, 0.5, 1), random_tensor({1}, 2)});
}

// The stream {x + delta} and its norm go different ways.
TEST(AddRmsNormVjp, BothResults) {
  check_vjp(
      [](auto& in) {
        const auto [sum, y] = ops::add_rms_norm(in[0], in[1], in[2], 1e-5);
        return ops::add_scaled(ops::mul(sum, sum), y, 0.7);
      },
      {random_tensor({2, 3, 17}, 1), random_tensor({2, 3, 17}, 2), random_tensor({17}, 3)});
}

TEST(AddRmsNormVjp, TheNormAlone) {
  check_vjp([](auto& in) { return ops::add_rms_norm(in[0], in[1], in[2], 1e-5).second; },
            {random_tensor({5, 9}, 1), random_tensor({5, 9}, 2), random_tensor({9}, 3)});
}

TEST(AddRmsNormVjp, TheSumAlone) {
  const Tensor weight = random_tensor({9}, 3);
  check_vjp([&](auto& in) { return ops::add_rms_norm(in[0], in[1], weight, 1e-5).first; },
            {random_tensor({5, 9}, 1), random_tensor({5, 9}, 2)});
}

TEST(AddRmsNormVjp, TheSameTensorTwice) {
  check_vjp([](auto& in) { return ops::add_rms_norm(in[0], in[0], in[1], 1e-5).second; },
            {random_tensor({5, 9}, 1), random_tensor({9}, 3)});
}

TEST(AddRmsNorm, IsTheSumAndItsNorm) {
  for (const auto& [dtype, tolerance] :
       {std::pair(DType::f64, 1e-14), {DType::f32, 2e-6}, {DType::bf16, 8e-3}}) {
    const Tensor x = random_tensor({3, 5, 17}, 1, -1, 1, dtype),
                 delta = random_tensor({3, 5, 17}, 2, -1, 1, dtype),
                 weight = random_tensor({17}, 3, 0.5, 2, dtype);
    const auto [sum, y] = ops::add_rms_norm(x, delta, weight, 1e-5);
    const std::string type(name_of(dtype));
    test::expect_close(sum, ops::add(x, delta), 0, "sum in " + type);
    test::expect_close(y, ops::rms_norm(ops::add(x, delta), weight, 1e-5), tolerance, "norm in " + type);
  }
}

}  // namespace
}  // namespace ridge
