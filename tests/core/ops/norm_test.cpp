#include "core/ops/norm.h"

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

}  // namespace
}  // namespace ridge
