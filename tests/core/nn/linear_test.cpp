#include "core/nn/linear.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/core/ops/jacobian.h"

namespace ridge::nn {
namespace {

using test::random_tensor;

constexpr std::int64_t kIn = 7, kOut = 11;

DenseLinear make(bool bias) {
  DenseLinear linear(kIn, kOut, bias, DType::f64, Device::cpu);
  linear.weight().copy_from(random_tensor({kOut, kIn}, 1));
  if (bias) linear.bias().copy_from(random_tensor({kOut}, 2));
  return linear;
}

std::vector<double> logits_of(DenseLinear& linear, const Tensor& x_RC) {
  std::vector<double> out;
  for (std::int64_t r = 0; r < x_RC.dim(0); ++r) {
    for (std::int64_t o = 0; o < kOut; ++o) {
      double sum = linear.bias().defined() ? linear.bias().span<double>()[static_cast<std::size_t>(o)] : 0;
      for (std::int64_t i = 0; i < kIn; ++i)
        sum += x_RC.view<double>()(r, i) * linear.weight().view<double>()(o, i);
      out.push_back(sum);
    }
  }
  return out;
}

// The loss of each row; 0 for a target of -100.
std::vector<double> losses_of(const std::vector<double>& logits, const Tensor& targets) {
  std::vector<double> out;
  for (std::size_t r = 0; r < logits.size() / kOut; ++r) {
    double sum = 0;
    for (std::size_t o = 0; o < kOut; ++o) sum += std::exp(logits[r * kOut + o]);
    const std::int32_t target = targets.span<std::int32_t>()[r];
    out.push_back(target < 0 ? 0 : std::log(sum) - logits[r * kOut + static_cast<std::size_t>(target)]);
  }
  return out;
}

TEST(DenseLinear, IsAProductAndABias) {
  for (const bool bias : {false, true}) {
    DenseLinear linear = make(bias);
    const Tensor x = random_tensor({3, 2, kIn}, 3);
    const Tensor y = linear.forward(x);
    EXPECT_EQ(y.shape(), (Shape{3, 2, kOut}));
    const auto want = logits_of(linear, x.reshaped({6, kIn}));
    for (std::size_t i = 0; i < want.size(); ++i) EXPECT_NEAR(y.span<double>()[i], want[i], 1e-12);
    EXPECT_EQ(linear.in_features(), kIn);
    EXPECT_EQ(linear.out_features(), kOut);
    Parameters parameters;
    linear.collect("a.b", parameters);
    ASSERT_EQ(parameters.size(), bias ? 2u : 1u);
    EXPECT_EQ(parameters[0].name, "a.b.weight");
    EXPECT_EQ(parameters.back().name, bias ? "a.b.bias" : "a.b.weight");
  }
}

TEST(DenseLinear, LossesWithAndWithoutABias) {
  const Tensor targets = Tensor::from(std::vector<std::int32_t>{0, 10, -100, 4}, {4});
  for (const bool bias : {false, true}) {
    DenseLinear linear(kIn, kOut, bias, DType::f32, Device::cpu);
    DenseLinear wide = make(bias);
    linear.weight().copy_from(wide.weight());
    if (bias) linear.bias().copy_from(wide.bias());
    const Tensor x = random_tensor({4, kIn}, 3);
    const auto want = losses_of(logits_of(wide, x), targets);
    const Tensor losses = linear.token_losses(x.to(DType::f32), targets);
    ASSERT_EQ(losses.shape(), Shape{4});
    double sum = 0;
    for (std::size_t r = 0; r < 4; ++r) {
      EXPECT_NEAR(losses.span<float>()[r], want[r], 1e-5) << "row " << r;
      sum += want[r];
    }
    EXPECT_NEAR(linear.cross_entropy(x.to(DType::f32), targets, 0.5).item(), 0.5 * sum, 1e-5);
  }
}

TEST(TiedLinear, IsTheTable) {
  DenseLinear dense = make(false);
  const TiedLinear tied(dense.weight());
  const Tensor x = random_tensor({4, kIn}, 3);
  test::expect_close(tied.forward(x), dense.forward(x), 0, "logits");
  EXPECT_EQ(tied.in_features(), kIn);
  EXPECT_EQ(tied.out_features(), kOut);
  Parameters parameters;
  const_cast<TiedLinear&>(tied).collect("lm_head", parameters);
  EXPECT_TRUE(parameters.empty());  // the embedding has it already
  dense.weight() = dense.weight().contiguous_copy();
  dense.weight().span<double>()[0] += 1;
  test::expect_close(tied.forward(x), dense.forward(x), 0, "after the table was replaced");
}

}  // namespace
}  // namespace ridge::nn
