#include "lora/lora_linear.h"

#include <gtest/gtest.h>

#include "core/autograd.h"
#include "core/ops/reduce.h"
#include "core/ops/shape.h"
#include "core/random_state.h"
#include "tests/core/models/reference.h"
#include "tests/core/ops/jacobian.h"

namespace ridge::lora {
namespace {

using test::random_tensor;

constexpr std::int64_t kIn = 7, kOut = 5, kRank = 3;

std::unique_ptr<LoraLinear> make(DType dtype, double scaling, double dropout, bool bias = true) {
  auto base = std::make_unique<nn::DenseLinear>(kIn, kOut, bias, dtype, test::test_device());
  base->weight().copy_from(random_tensor({kOut, kIn}, 1));
  if (bias) base->bias().copy_from(random_tensor({kOut}, 2));
  auto lora = std::make_unique<LoraLinear>(std::move(base), kRank, scaling, dropout, test::test_device());
  lora->a().copy_from(random_tensor({kRank, kIn}, 3));
  lora->b().copy_from(random_tensor({kOut, kRank}, 4));
  return lora;
}

Tensor& named(nn::Parameters& parameters, const std::string& name) {
  for (const nn::Parameter& p : parameters) {
    if (p.name == name) return *p.value;
  }
  throw std::out_of_range(name);
}

// x W' + b + scaling * x A' B' in f64.
std::vector<double> reference(LoraLinear& lora, const Tensor& x, double scaling) {
  nn::Parameters parameters;
  lora.collect("p", parameters);
  const auto w = test::values_of(named(parameters, "p.weight")),
             b = test::values_of(named(parameters, "p.bias"));
  const auto a = test::values_of(lora.a()), up = test::values_of(lora.b()), in = test::values_of(x);
  std::vector<double> out;
  for (std::size_t row = 0; row < in.size() / kIn; ++row) {
    for (std::size_t o = 0; o < kOut; ++o) {
      double sum = b[o];
      for (std::size_t i = 0; i < kIn; ++i) sum += in[row * kIn + i] * w[o * kIn + i];
      for (std::size_t r = 0; r < kRank; ++r) {
        double low = 0;
        for (std::size_t i = 0; i < kIn; ++i) low += in[row * kIn + i] * a[r * kIn + i];
        sum += scaling * low * up[o * kRank + r];
      }
      out.push_back(sum);
    }
  }
  return out;
}

TEST(LoraLinear, IsTheBasePlusTheScaledProduct) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const auto lora = make(dtype, 1.7, 0);
    const Tensor x = random_tensor({2, 3, kIn}, 5, -1, 1, dtype);
    const Tensor y = lora->forward(x);
    EXPECT_EQ(y.shape(), (Shape{2, 3, kOut}));
    EXPECT_EQ(y.dtype(), dtype);
    const auto want = reference(*lora, x, 1.7), got = test::values_of(y);
    for (std::size_t i = 0; i < want.size(); ++i)
      EXPECT_NEAR(got[i], want[i], dtype == DType::f32 ? 2e-6 : 0.06);
  }
}

TEST(LoraLinear, NamesItsParametersAsPeftDoes) {
  const auto lora = make(DType::f32, 1, 0);
  nn::Parameters parameters;
  lora->collect("model.q_proj", parameters);
  std::vector<std::string> names;
  for (const nn::Parameter& p : parameters) names.push_back(p.name);
  EXPECT_EQ(names, (std::vector<std::string>{"model.q_proj.weight", "model.q_proj.bias",
                                             "model.q_proj.lora_A.weight", "model.q_proj.lora_B.weight"}));
  EXPECT_EQ(lora->in_features(), kIn);
  EXPECT_EQ(lora->out_features(), kOut);
  EXPECT_EQ(lora->rank(), kRank);
}

TEST(LoraLinear, MergedItComputesTheSame) {
  const auto lora = make(DType::f32, -0.8, 0);
  const Tensor x = random_tensor({4, kIn}, 5, -1, 1, DType::f32);
  const Tensor apart = lora->forward(x);
  const auto base = lora->merge();
  EXPECT_LE(test::max_difference(base->forward(x), apart), 2e-6);
}

TEST(LoraLinear, MergingIntoBf16RoundsOnce) {
  const auto lora = make(DType::bf16, 0.37, 0, false);
  nn::Parameters parameters;
  lora->collect("p", parameters);
  const auto before = test::values_of(named(parameters, "p.weight"));
  const auto a = test::values_of(lora->a()), b = test::values_of(lora->b());
  const auto base = lora->merge();
  nn::Parameters merged;
  base->collect("p", merged);
  ASSERT_EQ(merged.size(), 1u);
  ASSERT_EQ(merged[0].value->dtype(), DType::bf16);
  const auto after = test::values_of(*merged[0].value);
  for (std::size_t o = 0; o < kOut; ++o) {
    for (std::size_t i = 0; i < kIn; ++i) {
      double product = 0;
      for (std::size_t r = 0; r < kRank; ++r) product += b[o * kRank + r] * a[r * kIn + i];
      const double exact = before[o * kIn + i] + 0.37 * product;
      EXPECT_EQ(after[o * kIn + i], static_cast<double>(static_cast<float>(bf16(static_cast<float>(exact)))));
    }
  }
}

TEST(LoraLinear, GradientsReachAAndBAndTheInputAndNotTheFrozenBase) {
  const auto lora = make(DType::f32, 1.3, 0);
  autograd::set_requires_grad(lora->a(), true);
  autograd::set_requires_grad(lora->b(), true);
  Tensor x = random_tensor({4, kIn}, 5, -1, 1, DType::f32);
  autograd::set_requires_grad(x, true);
  const Tensor weights = random_tensor({4, kOut}, 6, -1, 1, DType::f32);
  autograd::backward(lora->forward(x), weights);
  // d/dB = scaling * dy' (x A'), at one element against the sum by hand
  const auto in = test::values_of(x), a = test::values_of(lora->a()), dy = test::values_of(weights);
  double want = 0;
  for (std::size_t row = 0; row < 4; ++row) {
    double low = 0;
    for (std::size_t i = 0; i < kIn; ++i) low += in[row * kIn + i] * a[1 * kIn + i];
    want += 1.3 * dy[row * kOut + 2] * low;
  }
  EXPECT_NEAR(test::values_of(autograd::grad_of(lora->b()))[2 * kRank + 1], want, 1e-5);
  EXPECT_EQ(autograd::grad_of(lora->a()).shape(), lora->a().shape());
  EXPECT_EQ(autograd::grad_of(x).shape(), x.shape());
  nn::Parameters parameters;
  lora->collect("p", parameters);
  EXPECT_FALSE(named(parameters, "p.weight").requires_grad());
}

// q, k and v of one input, of which q and v are adapted.
struct Group {
  explicit Group(DType dtype) : layers(nn::dense_group(kIn, {kOut, 2, 3}, true, dtype, test::test_device())) {
    nn::Parameters parameters;
    for (const auto& layer : layers) layer->collect("p", parameters);
    for (std::size_t i = 0; i < parameters.size(); ++i)
      parameters[i].value->copy_from(random_tensor(parameters[i].value->shape(), 10 + i));
    for (const std::size_t which : {0, 2}) {
      auto lora = std::make_unique<LoraLinear>(std::move(layers[which]), kRank, 0.7, 0, test::test_device());
      for (Tensor* t : {&lora->a(), &lora->b()}) {
        t->copy_from(random_tensor(t->shape(), 30 + leaves.size()));
        autograd::set_requires_grad(*t, true);
        leaves.push_back(*t);
      }
      layers[which] = std::move(lora);
    }
  }
  std::vector<std::unique_ptr<nn::Linear>> layers;
  std::vector<Tensor> leaves;
};

TEST(LoraLinear, InAGroupItIsWhatItIsAlone) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const double tolerance = dtype == DType::f32 ? 2e-6 : 2e-2;
    const auto run = [&](bool together) {
      const Group group(dtype);
      Tensor x = random_tensor({2, 4, kIn}, 5, -1, 1, dtype);
      autograd::set_requires_grad(x, true);
      const auto& l = group.layers;
      const Tensor y =
          together ? nn::forward_group({l[0].get(), l[1].get(), l[2].get()}, x)
                   : ops::concat(ops::concat(l[0]->forward(x), l[1]->forward(x), 2), l[2]->forward(x), 2);
      autograd::backward(y, random_tensor(y.shape(), 6, -1, 1, dtype));
      std::vector<Tensor> all{y.detached(), autograd::grad_of(x)};
      for (const Tensor& t : group.leaves) all.push_back(autograd::grad_of(t));
      return all;
    };
    const auto together = run(true), alone = run(false);
    for (std::size_t i = 0; i < alone.size(); ++i)
      test::expect_close(together[i], alone[i], tolerance, "tensor " + std::to_string(i));
  }
}

TEST(LoraLinear, DropoutIsOnTheAdaptersInputAloneWhileGradientsAreRecorded) {
  const auto lora = make(DType::f32, 1, 0.5);
  const auto plain = make(DType::f32, 1, 0);
  const Tensor x = random_tensor({64, kIn}, 5, -1, 1, DType::f32);
  {
    const autograd::NoGradScope no_grad;
    EXPECT_TRUE(test::same_bits(lora->forward(x), plain->forward(x)));
  }
  autograd::set_requires_grad(lora->a(), true);
  random_state() = {1, 2, 0, 0};
  const Tensor first = lora->forward(x);
  random_state() = {1, 2, 0, 0};
  const Tensor same = lora->forward(x);
  const Tensor next = lora->forward(x);
  EXPECT_TRUE(test::same_bits(first, same));
  EXPECT_FALSE(test::same_bits(same, next));
  EXPECT_FALSE(test::same_bits(first, plain->forward(x)));
  lora->b().copy_from(Tensor::zeros({kOut, kRank}, DType::f32));
  plain->b().copy_from(Tensor::zeros({kOut, kRank}, DType::f32));
  EXPECT_EQ(test::max_difference(lora->forward(x), plain->forward(x)), 0);  // the base sees all of x
}

}  // namespace
}  // namespace ridge::lora
