#include "core/ops/activation.h"

#include "tests/core/ops/jacobian.h"

namespace ridge {
namespace {

using test::check_vjp;
using test::random_tensor;

TEST(SiluVjp, OddSizes) {
  check_vjp([](auto& in) { return ops::silu(in[0]); }, {random_tensor({3, 5, 7}, 1, -4, 4)});
}

TEST(GeluVjp, Erf) {
  check_vjp([](auto& in) { return ops::gelu(in[0]); }, {random_tensor({3, 17}, 1, -4, 4)});
}

TEST(GeluVjp, Tanh) {
  check_vjp([](auto& in) { return ops::gelu_tanh(in[0]); }, {random_tensor({3, 17}, 1, -4, 4)});
}

TEST(SwigluVjp, OddSizes) {
  check_vjp([](auto& in) { return ops::swiglu(in[0], in[1]); },
            {random_tensor({3, 19}, 1, -4, 4), random_tensor({3, 19}, 2)});
}

TEST(SwigluPackedVjp, OddSizes) {
  check_vjp([](auto& in) { return ops::swiglu_packed(in[0]); }, {random_tensor({3, 38}, 1, -4, 4)});
  check_vjp([](auto& in) { return ops::swiglu_packed(in[0]); }, {random_tensor({2, 3, 2}, 2, -4, 4)});
}

TEST(SwigluPacked, IsGateAndUpSideBySide) {
  for (const DType dtype : {DType::f64, DType::f32, DType::bf16}) {
    const Tensor both = random_tensor({2, 3, 38}, 1, -4, 4, dtype);
    test::expect_close(ops::swiglu_packed(both), ops::swiglu(both.sliced(2, 0, 19), both.sliced(2, 19, 38)),
                       0, std::string(name_of(dtype)));
  }
  EXPECT_THROW(ops::swiglu_packed(random_tensor({3, 7}, 1)), Error);
}

}  // namespace
}  // namespace ridge
