#include "core/ops/attention.h"

#include "core/nn/rotary.h"
#include "tests/core/ops/jacobian.h"

namespace ridge {
namespace {

using test::check_vjp;
using test::random_tensor;

struct Case {
  const char* name;
  std::int64_t B, T, S, H, G, D, window;
  bool causal;
};

class AttentionVjp : public testing::TestWithParam<Case> {};

TEST_P(AttentionVjp, MatchesDifferences) {
  const Case& c = GetParam();
  kernels::AttentionOptions options;
  options.scale = 1 / std::sqrt(static_cast<double>(c.D));
  options.window = c.window;
  options.causal = c.causal;
  check_vjp([&](auto& in) { return ops::attention(in[0], in[1], in[2], options); },
            {random_tensor({c.B, c.T, c.H, c.D}, 1), random_tensor({c.B, c.S, c.G, c.D}, 2),
             random_tensor({c.B, c.S, c.G, c.D}, 3)});
}

INSTANTIATE_TEST_SUITE_P(Shapes, AttentionVjp,
                         testing::Values(Case{"causal", 1, 5, 5, 2, 2, 4, 0, true},
                                         Case{"grouped", 2, 3, 3, 4, 2, 6, 0, true},
                                         Case{"multi_query", 1, 4, 4, 3, 1, 5, 0, true},
                                         Case{"window", 1, 7, 7, 2, 1, 4, 3, true},
                                         Case{"after_a_cache", 1, 2, 6, 2, 1, 4, 0, true},
                                         Case{"not_causal", 1, 3, 5, 2, 2, 3, 0, false}),
                         [](const auto& info) { return info.param.name; });

TEST(RotaryVjp, HalfSplitPairs) {
  nn::RopeConfig config;
  config.head_dim = 6;
  nn::RotaryTable table(config);
  const auto tables = table.get(5, test::test_device());
  check_vjp(
      [&](auto& in) { return ops::rotary(in[0], tables.cos.sliced(0, 0, 5), tables.sin.sliced(0, 0, 5)); },
      {random_tensor({2, 5, 3, 6}, 1)});
}

}  // namespace
}  // namespace ridge
