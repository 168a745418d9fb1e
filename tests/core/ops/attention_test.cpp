#include "core/ops/attention.h"

#include "core/nn/rotary.h"
#include "core/ops/elementwise.h"
#include "core/ops/shape.h"
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

// Angles of the first T positions.
nn::RotaryTable::Tables tables_for(std::int64_t T, std::int64_t D) {
  nn::RopeConfig config;
  config.head_dim = D;
  nn::RotaryTable table(config);
  const auto& all = table.get(T, test::test_device());
  return {all.cos.sliced(0, 0, T), all.sin.sliced(0, 0, T)};
}

TEST(RotaryVjp, HalfSplitPairs) {
  const auto tables = tables_for(5, 6);
  check_vjp([&](auto& in) { return ops::rotary(in[0], tables.cos, tables.sin); },
            {random_tensor({2, 5, 3, 6}, 1)});
}

class RotaryAttention : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    options.scale = 1 / std::sqrt(static_cast<double>(c.D));
    options.window = c.window;
  }
  // It rotates what it is given: a copy of x.
  Tensor fused(const Tensor& x) const {
    return ops::rotary_attention(ops::scale(x, 1), {c.H, c.G, c.D}, tables.cos, tables.sin, options);
  }
  Tensor in_steps(const Tensor& x) const {
    const Tensor qkv = ops::reshape(x, {c.B, c.T, c.H + 2 * c.G, c.D});
    const Tensor q = ops::rotary(ops::slice(qkv, 2, 0, c.H), tables.cos, tables.sin),
                 k = ops::rotary(ops::slice(qkv, 2, c.H, c.H + c.G), tables.cos, tables.sin),
                 v = ops::slice(qkv, 2, c.H + c.G, c.H + 2 * c.G);
    return ops::reshape(ops::attention(q, k, v, options), {c.B, c.T, c.H * c.D});
  }
  Tensor input(DType dtype) const {
    return random_tensor({c.B, c.T, (c.H + 2 * c.G) * c.D}, 1, -1, 1, dtype);
  }
  const Case c = GetParam();
  const nn::RotaryTable::Tables tables = tables_for(c.T, c.D);
  kernels::AttentionOptions options;
};

TEST_P(RotaryAttention, GradientMatchesDifferences) {
  check_vjp([&](auto& in) { return fused(in[0]); }, {input(DType::f64)});
}

TEST_P(RotaryAttention, IsRotaryThenAttention) {
  for (const DType dtype : {DType::f64, DType::f32, DType::bf16}) {
    const double tolerance = dtype == DType::f64 ? 1e-13 : dtype == DType::f32 ? 1e-5 : 2e-2;
    const auto run = [&](bool together) {
      Tensor x = input(dtype);
      autograd::set_requires_grad(x, true);
      const Tensor y = together ? fused(x) : in_steps(x);
      autograd::backward(y, random_tensor(y.shape(), 9, -1, 1, dtype));
      return std::pair(y.detached(), autograd::grad_of(x));
    };
    const auto [y, dx] = run(true);
    const auto [y_steps, dx_steps] = run(false);
    test::expect_close(y, y_steps, tolerance, "values");
    test::expect_close(dx, dx_steps, tolerance, "gradient");
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, RotaryAttention,
                         testing::Values(Case{"plain", 1, 5, 5, 2, 2, 4, 0, true},
                                         Case{"grouped", 2, 3, 3, 4, 2, 6, 0, true},
                                         Case{"multi_query", 2, 4, 4, 3, 1, 2, 0, true},
                                         Case{"window", 1, 7, 7, 2, 1, 4, 3, true},
                                         Case{"one_token", 2, 1, 1, 2, 1, 4, 0, true}),
                         [](const auto& info) { return info.param.name; });

TEST(RotaryAttentionOp, QkvThatIsNotSideBySideIsAnError) {
  const auto tables = tables_for(3, 4);
  const auto run = [&](const Tensor& qkv) {
    ops::rotary_attention(qkv, {2, 1, 4}, tables.cos, tables.sin, {});
  };
  EXPECT_THROW(run(random_tensor({1, 3, 15}, 1)), Error);
  EXPECT_THROW(run(random_tensor({3, 16}, 1)), Error);
  EXPECT_THROW(run(random_tensor({1, 16, 3}, 1).transposed(1, 2)), Error);
}

}  // namespace
}  // namespace ridge
