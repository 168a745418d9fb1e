// Folders that quantize_folder() wrote, read again: the codes are those of quantize(), bit by bit.
#include "quant/round_to_nearest.h"

#include <gtest/gtest.h>

#include "core/autograd.h"
#include "core/nn/quantized_linear.h"
#include "tests/core/io/io_test_util.h"
#include "tests/core/models/reference.h"

namespace ridge::quant {
namespace {

using models::LoadMode;
using test::expect_contains;
using test::message_of;
using test::TemporaryFolder;

models::ModelConfig config(bool tied, const std::string& dtype = "float32", std::int64_t intermediate = 256) {
  return models::ModelConfig::parse(
      fmt::format(
          R"({{"model_type": "llama", "hidden_size": 128, "intermediate_size": {}, "num_hidden_layers": 1,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 67, "attention_bias": true,
        "tie_word_embeddings": {}, "torch_dtype": "{}"}})",
          intermediate, tied, dtype),
      "config");
}

// A folder of random weights.
void write_model(const models::ModelConfig& config, const std::string& folder, DType dtype) {
  models::Llama model(config, DType::f32, Device::cpu);
  model.initialize(3);
  models::save_model(model, folder, dtype, "");
}

struct Case {
  const char* format;
  DType dtype;
  bool tied, head;
};

class WrittenFolder : public testing::TestWithParam<Case> {};

TEST_P(WrittenFolder, IsReadAsItWasMade) {
  const auto [name, dtype, tied, head] = GetParam();
  const kernels::WeightFormat format = kernels::parse_weight_format(name);
  const TemporaryFolder folder;
  write_model(config(tied, dtype == DType::bf16 ? "bfloat16" : "float32"), folder / "dense", dtype);
  const RoundToNearestReport report =
      quantize_folder(folder / "dense", format, head, folder / "out", test::test_device());
  const models::ModelWeights dense(folder / "dense"), out(folder / "out");
  EXPECT_EQ(out.notes(), std::vector<std::string>());
  EXPECT_EQ(report.layers, head && !tied ? 8 : 7);
  EXPECT_EQ(report.bytes_before, dense.stored_bytes());
  EXPECT_EQ(report.bytes_after, out.stored_bytes());
  EXPECT_LT(report.bytes_after, report.bytes_before);
  double worst = 0;
  const auto model = test::load(folder / "out");
  for (const nn::LinearSlot& slot : model->linears()) {
    const bool quantized = slot.path != "lm_head" || head;
    ASSERT_EQ((*slot.slot)->quantized() != nullptr, quantized) << slot.path;
    if (!quantized) continue;
    QuantizedWeight got = (*slot.slot)->quantized()->weight();
    const Tensor w = dense.read(slot.path + ".weight", got.shape);
    QuantizedWeight want = quantize(w, format);
    EXPECT_EQ(got.format, format);
    const auto a = got.parts(), b = want.parts();
    ASSERT_EQ(a.size(), b.size());
    for (std::size_t i = 0; i < a.size(); ++i)
      EXPECT_TRUE(test::same_bits(*a[i].value, *b[i].value)) << slot.path << a[i].suffix;
    worst = std::max(worst, relative_error(w, dequantize(want, DType::f32)));
  }
  EXPECT_EQ(report.worst_error, worst);
  EXPECT_TRUE(test::same_bits(test::parameter(*model, "model.embed_tokens.weight").to(dtype),
                              dense.read("model.embed_tokens.weight", {67, 128})));
}

INSTANTIATE_TEST_SUITE_P(
    Formats, WrittenFolder,
    testing::Values(Case{"int8", DType::f32, false, false}, Case{"fp8", DType::f32, true, true},
                    Case{"fp8-block", DType::bf16, false, true}, Case{"nf4", DType::f32, false, true},
                    Case{"nf4-dq", DType::bf16, false, false}, Case{"nf4-dq", DType::f32, true, false},
                    Case{"fp4", DType::bf16, false, false}, Case{"fp4-dq", DType::f32, false, true},
                    Case{"int4-g32", DType::f32, false, true}, Case{"int4-g64", DType::bf16, false, false},
                    Case{"int4-g128", DType::bf16, true, true}, Case{"int4-g32-zp", DType::bf16, false, true},
                    Case{"int4-g64-zp", DType::f32, false, false},
                    Case{"int4-g128-zp", DType::f32, false, false}));

// On load gives the same model as through a folder.
TEST(QuantizeOnLoad, IsTheFoldersModel) {
  const TemporaryFolder folder;
  write_model(config(false), folder / "dense", DType::f32);
  for (const char* name : {"nf4-dq", "int4-g64-zp", "int8"}) {
    models::QuantizeOnLoad how;
    how.format = kernels::parse_weight_format(name);
    how.head = true;
    quantize_folder(folder / "dense", *how.format, true, folder / "out", test::test_device());
    const auto loaded =
        models::load_model(folder / "dense", DType::f32, LoadMode::read, test::test_device(), how);
    const auto stored = test::load(folder / "out");
    const autograd::NoGradScope no_grad;
    const Tensor ids = Tensor::from(std::vector<std::int32_t>{1, 5, 66, 0, 9}, {1, 5});
    EXPECT_TRUE(test::same_bits(loaded.model->logits(ids), stored->logits(ids))) << name;
    EXPECT_GT(test::range_error(loaded.model->logits(ids), test::load(folder / "dense")->logits(ids)), 1e-4);
  }
}

TEST(QuantizeOnLoad, ATiedOutputLayerStaysDense) {
  const TemporaryFolder folder;
  write_model(config(true), folder / "dense", DType::f32);
  models::QuantizeOnLoad how;
  how.format = kernels::parse_weight_format("fp8");
  how.head = true;
  const auto loaded =
      models::load_model(folder / "dense", DType::f32, LoadMode::train, test::test_device(), how);
  ASSERT_EQ(loaded.notes.size(), 1u);
  expect_contains(loaded.notes[0], "stays dense");
}

TEST(QuantizeFolder, RefusesBeforeItWrites) {
  const TemporaryFolder folder;
  write_model(config(false, "float32", 224), folder / "dense", DType::f32);
  const auto error = [&](const char* format) {
    return message_of([&] {
      quantize_folder(folder / "dense", kernels::parse_weight_format(format), false, folder / "out",
                      Device::cpu);
    });
  };
  const std::string message = error("int4-g64");
  for (const char* part : {"mlp.down_proj", "[128, 224]", "64"}) expect_contains(message, part);
  EXPECT_EQ(folder.names(), std::vector<std::string>{"dense"});
  quantize_folder(folder / "dense", kernels::parse_weight_format("int4-g32"), false, folder / "out",
                  Device::cpu);
  expect_contains(message_of([&] {
                    quantize_folder(folder / "out", kernels::parse_weight_format("nf4"), false,
                                    folder / "again", Device::cpu);
                  }),
                  "quantized already");
  EXPECT_EQ(folder.names(), (std::vector<std::string>{"dense", "out"}));
}

TEST(QuantizeFolder, NamesWeightsThatAreNotFinite) {
  const TemporaryFolder folder;
  models::Llama model(config(false), DType::f32, Device::cpu);
  model.initialize(3);
  test::parameter(model, "model.layers.0.mlp.up_proj.weight").span<float>()[7] = std::nanf("");
  models::save_model(model, folder / "dense", DType::f32, "");
  for (const char* format : {"nf4", "int8", "fp8", "int4-g32-zp"}) {
    const std::string message = message_of([&] {
      quantize_folder(folder / "dense", kernels::parse_weight_format(format), false, folder / "out",
                      Device::cpu);
    });
    for (const char* part : {"mlp.up_proj", "finite"}) expect_contains(message, part);
  }
  EXPECT_EQ(folder.names(), std::vector<std::string>{"dense"});
}

TEST(RelativeError, IsOfFrobeniusNorms) {
  const Tensor want = Tensor::from(std::vector<float>{3, 0, 4, 0}, {2, 2});
  const Tensor got = Tensor::from(std::vector<float>{3, 1, 4, -2}, {2, 2});
  EXPECT_DOUBLE_EQ(relative_error(want, got), std::sqrt(5.0) / 5);
  EXPECT_EQ(relative_error(Tensor::zeros({2}, DType::f32), Tensor::zeros({2}, DType::f32)), 0);
}

}  // namespace
}  // namespace ridge::quant
