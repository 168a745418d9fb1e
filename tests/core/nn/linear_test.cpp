#include "core/nn/linear.h"

#include <gtest/gtest.h>

#include <cmath>

#include "core/ops/linear.h"
#include "tests/core/ops/jacobian.h"

namespace ridge::nn {
namespace {

using test::random_tensor;

constexpr std::int64_t kIn = 7, kOut = 11;

DenseLinear make(bool bias) {
  DenseLinear linear(kIn, kOut, bias, DType::f64, test::test_device());
  linear.weight().copy_from(random_tensor({kOut, kIn}, 1));
  if (bias) linear.bias().copy_from(random_tensor({kOut}, 2));
  return linear;
}

std::vector<double> logits_of(const DenseLinear& linear, const Tensor& there_RC) {
  const Tensor x_RC = there_RC.on(Device::cpu), weight = linear.weight().on(Device::cpu);
  const Tensor bias = linear.bias().defined() ? linear.bias().on(Device::cpu) : Tensor();
  std::vector<double> out;
  for (std::int64_t r = 0; r < x_RC.dim(0); ++r) {
    for (std::int64_t o = 0; o < kOut; ++o) {
      double sum = bias.defined() ? bias.span<double>()[static_cast<std::size_t>(o)] : 0;
      for (std::int64_t i = 0; i < kIn; ++i) sum += x_RC.view<double>()(r, i) * weight.view<double>()(o, i);
      out.push_back(sum);
    }
  }
  return out;
}

// The loss of each row; 0 for a target of -100.
std::vector<double> losses_of(const std::vector<double>& logits, const std::vector<std::int32_t>& targets) {
  std::vector<double> out;
  for (std::size_t r = 0; r < logits.size() / kOut; ++r) {
    double sum = 0;
    for (std::size_t o = 0; o < kOut; ++o) sum += std::exp(logits[r * kOut + o]);
    const std::int32_t target = targets[r];
    out.push_back(target < 0 ? 0 : std::log(sum) - logits[r * kOut + static_cast<std::size_t>(target)]);
  }
  return out;
}

TEST(DenseLinear, IsAProductAndABias) {
  for (const bool bias : {false, true}) {
    DenseLinear linear = make(bias);
    const Tensor x = random_tensor({3, 2, kIn}, 3);
    const Tensor y = linear.forward(x).on(Device::cpu);
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
  const std::vector<std::int32_t> ids{0, 10, -100, 4};
  const Tensor targets = Tensor::from(ids, {4}).on(test::test_device());
  for (const bool bias : {false, true}) {
    DenseLinear linear(kIn, kOut, bias, DType::f32, test::test_device());
    DenseLinear wide = make(bias);
    linear.weight().copy_from(wide.weight());
    if (bias) linear.bias().copy_from(wide.bias());
    const Tensor x = random_tensor({4, kIn}, 3);
    const auto want = losses_of(logits_of(wide, x), ids);
    const Tensor losses = linear.token_losses(x.to(DType::f32), targets).on(Device::cpu);
    ASSERT_EQ(losses.shape(), Shape{4});
    double sum = 0;
    for (std::size_t r = 0; r < 4; ++r) {
      EXPECT_NEAR(losses.span<float>()[r], want[r], 1e-5) << "row " << r;
      sum += want[r];
    }
    EXPECT_NEAR(linear.cross_entropy(x.to(DType::f32), targets, 0.5).item(), 0.5 * sum, 1e-5);
  }
}

// y = x W' + b + x E', as an adapter adds to what the dense part gives.
class WithExtra final : public Linear {
 public:
  explicit WithExtra(std::unique_ptr<Linear> base, std::uint64_t stream)
      : base_(std::move(base)), extra_(random_tensor({base_->out_features(), kIn}, stream)) {
    const std::int64_t n = base_->out_features();
    const Tensor one = Tensor::zeros({n, n}, DType::f64);
    for (std::int64_t i = 0; i < n; ++i) one.view<double>()(i, i) = 1;
    one_ = one.on(test::test_device());
  }
  Tensor forward(const Tensor& x) const override { return add_extra(x, base_->forward(x), 0); }
  std::int64_t in_features() const override { return base_->in_features(); }
  std::int64_t out_features() const override { return base_->out_features(); }
  void collect(const std::string& path, Parameters& out) override { base_->collect(path, out); }
  const DenseLinear* dense() const override { return base_->dense(); }
  Tensor add_extra(const Tensor& x, const Tensor& y, std::int64_t column) const override {
    return ops::add_low_rank(y, x, extra_, one_, column, 1);
  }

 private:
  std::unique_ptr<Linear> base_;
  Tensor extra_;  // [out, in]
  Tensor one_;    // [out, out], the identity
};

// A layer that has no dense part.
class Opaque final : public Linear {
 public:
  explicit Opaque(std::unique_ptr<Linear> inner) : inner_(std::move(inner)) {}
  Tensor forward(const Tensor& x) const override { return inner_->forward(x); }
  std::int64_t in_features() const override { return inner_->in_features(); }
  std::int64_t out_features() const override { return inner_->out_features(); }
  void collect(const std::string& path, Parameters& out) override { inner_->collect(path, out); }

 private:
  std::unique_ptr<Linear> inner_;
};

std::vector<std::unique_ptr<Linear>> filled_group(bool bias) {
  auto group = dense_group(kIn, {4, 2, 5}, bias, DType::f64, test::test_device());
  Parameters parameters;
  for (const auto& layer : group) layer->collect("", parameters);
  for (std::size_t i = 0; i < parameters.size(); ++i)
    parameters[i].value->copy_from(random_tensor(parameters[i].value->shape(), 10 + i));
  return group;
}

void expect_group_is_its_members(const std::vector<std::unique_ptr<Linear>>& group) {
  const Tensor x = random_tensor({3, 2, kIn}, 3);
  std::vector<const Linear*> layers;
  for (const auto& layer : group) layers.push_back(layer.get());
  const Tensor all = forward_group(layers, x);
  EXPECT_EQ(all.shape(), (Shape{3, 2, 11}));
  std::int64_t column = 0;
  for (const auto& layer : group) {
    const std::int64_t end = column + layer->out_features();
    test::expect_close(all.sliced(2, column, end), layer->forward(x), 1e-14, "columns of a member");
    column = end;
  }
}

TEST(LinearGroup, LiesInOneBlockOfMemory) {
  const auto group = filled_group(true);
  std::vector<Tensor> weights, biases;
  for (const auto& layer : group) {
    weights.push_back(layer->dense()->weight());
    biases.push_back(layer->dense()->bias());
  }
  EXPECT_EQ(Tensor::joined(weights).shape(), (Shape{11, kIn}));
  EXPECT_EQ(Tensor::joined(biases).shape(), Shape{11});
}

TEST(LinearGroup, GivesItsMembersSideBySide) {
  for (const bool bias : {false, true}) expect_group_is_its_members(filled_group(bias));
}

TEST(LinearGroup, WithAMemberThatAddsSomething) {
  auto group = filled_group(true);
  group[1] = std::make_unique<WithExtra>(std::move(group[1]), 20);
  group[2] = std::make_unique<WithExtra>(std::move(group[2]), 21);
  expect_group_is_its_members(group);
}

TEST(LinearGroup, WithAMemberThatIsNotDense) {
  for (const std::size_t which : {0, 1, 2}) {
    auto group = filled_group(false);
    group[which] = std::make_unique<Opaque>(std::move(group[which]));
    expect_group_is_its_members(group);
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
  dense.weight() = random_tensor({kOut, kIn}, 4);
  test::expect_close(tied.forward(x), dense.forward(x), 0, "after the table was replaced");
}

}  // namespace
}  // namespace ridge::nn
