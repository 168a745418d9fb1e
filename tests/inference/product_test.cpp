// Layers of one input as one product against the layers themselves.
#include "inference/product.h"

#include <gtest/gtest.h>

#include "core/autograd.h"
#include "tests/core/models/reference.h"
#include "tests/inference/decode_helpers.h"

namespace ridge::inference {
namespace {

using namespace test;

constexpr std::int64_t kIn = 256, kOut[] = {64, 32, 48};

Tensor random_tensor(const Shape& shape, std::uint64_t key) {
  const Tensor t = Tensor::empty(shape, DType::bf16, test_device());
  kernels::normal<bf16>(test_stream(), t.view<bf16>(), 0, 1, {key, 0});
  return t;
}

/// Where a letter of `biases` is 'b' a layer has a bias, in memory of its own.
struct Layers {
  std::vector<std::unique_ptr<nn::QuantizedLinear>> owned;

  Layers(const char* format, const std::string& biases) {
    for (std::size_t i = 0; i < biases.size(); ++i) {
      const Tensor bias = biases[i] == 'b' ? random_tensor({kOut[i]}, 10 + i) : Tensor();
      owned.push_back(std::make_unique<nn::QuantizedLinear>(
          quantize(random_tensor({kOut[i], kIn}, i), kernels::parse_weight_format(format)), bias));
    }
  }
  std::vector<nn::Linear*> all() const {
    std::vector<nn::Linear*> layers;
    for (const auto& layer : owned) layers.push_back(layer.get());
    return layers;
  }
  std::vector<double> expected(const Tensor& x) const {
    const autograd::NoGradScope no_grad;
    std::vector<std::vector<double>> parts;
    for (const auto& layer : owned) parts.push_back(values_of(layer->forward(x)));
    std::vector<double> rows;
    for (std::int64_t r = 0; r < x.dim(1); ++r) {
      for (std::size_t i = 0; i < parts.size(); ++i)
        rows.insert(rows.end(), parts[i].begin() + r * kOut[i], parts[i].begin() + (r + 1) * kOut[i]);
    }
    return rows;
  }
};

class ProductFormats : public testing::TestWithParam<const char*> {};

TEST_P(ProductFormats, QuantizedLayersWithBiases) {
  const Device device = test_device();
  for (const std::string biases : {"bbb", "---", "b-b"}) {
    const Layers layers(GetParam(), biases);
    const Tensor x = random_tensor({1, 3, kIn}, 77), room = Tensor::zeros({3, 144}, DType::bf16, device);
    const std::vector<double> want = layers.expected(x);
    const Product product(layers.all());
    EXPECT_EQ(product.outputs(), 144);
    EXPECT_EQ(values_of(product.run(x, room)), want) << biases;
    EXPECT_EQ(layers.expected(x), want) << "the layers are as they were, " << biases;
    if (biases == "b-b") continue;
    for (std::int64_t rows = 1; rows <= kernels::kDecodeRows; ++rows)
      EXPECT_EQ(product.has_steps(rows, {}, device), on_gpu()) << biases << ", " << rows;
    if (!on_gpu()) continue;
    product.run_steps(x.reshaped({3, kIn}), {}, room);
    const std::vector<double> got = values_of(room);
    for (std::size_t i = 0; i < want.size(); ++i)
      ASSERT_NEAR(got[i], want[i], 0.2 + 0.01 * std::abs(want[i]));
  }
}

INSTANTIATE_TEST_SUITE_P(Formats, ProductFormats,
                         testing::Values("int8", "fp8", "nf4", "nf4-dq", "int4-g64", "int4-g64-zp"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

}  // namespace
}  // namespace ridge::inference
