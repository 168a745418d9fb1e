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

}  // namespace
}  // namespace ridge
