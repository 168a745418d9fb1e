// Quantized models through the program: written, run, described, merged.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/launch/train_helpers.h"

namespace ridge {
namespace {

using namespace test;
using Json = nlohmann::json;

Json json_of(Arguments words) {
  words.push_back("--json");
  const Json json = Json::parse(must_run(words).out, nullptr, false);
  EXPECT_TRUE(json.is_object());
  return json;
}

Arguments joined(Arguments words, const Arguments& more) {
  words.insert(words.end(), more.begin(), more.end());
  return words;
}

class Quantize : public testing::Test {
 protected:
  Quantize() { write_text(folder_ / "ids.json", "[[3, 1, 4, 1, 5, 9, 2, 6], [5, 3, 5, 8, 9, 7, 9, 3]]"); }

  std::vector<float> logits(const std::string& model, const Arguments& more = {}) {
    const std::string out = folder_ / "out.safetensors";
    must_run(joined({"logits", "--model", model, "--ids", folder_ / "ids.json", "--out", out}, more));
    return floats_of(SafetensorsFile::open(out).at("logits"));
  }
  static float worst(const std::vector<float>& a, const std::vector<float>& b) {
    float worst = a.size() == b.size() ? 0.0f : HUGE_VALF;
    for (std::size_t i = 0; i < std::min(a.size(), b.size()); ++i)
      worst = std::max(worst, std::abs(a[i] - b[i]));
    return worst;
  }

  TemporaryFolder folder_;
  const std::string base_ = data_file("models/llama3");  // hidden 48, untied
};

TEST_F(Quantize, AFolderRunsAsTheModelQuantizedOnLoad) {
  const std::vector<float> dense = logits(base_);
  for (const char* format : {"nf4-dq", "fp8-block", "int8"}) {
    const std::string out = folder_ / format;
    const Json json =
        json_of({"quantize", "--model", base_, "--format", format, "--out", out, "--include-head"});
    EXPECT_EQ(json.at("format"), format);
    EXPECT_EQ(json.at("layers"), 2 * 7 + 1);
    EXPECT_LT(json.at("bytes_after"), json.at("bytes_before"));
    EXPECT_GT(json.at("worst_error"), 0.001);
    EXPECT_LT(json.at("worst_error"), 0.15);
    const std::vector<float> stored = logits(out);
    EXPECT_EQ(stored, logits(base_, {"--quantize", format, "--quantize-head"}));
    EXPECT_GT(worst(stored, dense), 1e-4f);
    const Json info = json_of({"info", "--model", out});
    EXPECT_EQ(info.at("parameters"), json_of({"info", "--model", base_}).at("parameters"));
    EXPECT_EQ(info.at("bytes"), json.at("bytes_after"));
    EXPECT_EQ(info.at("weight_format"), format);
    EXPECT_EQ(info.at("quantized_layers"), 15);
  }
}

TEST_F(Quantize, KeepsTheTokenizerAndSaysWhatTheWeightsAre) {
  const TinyModel tiny(folder_);
  tiny.save();
  must_run({"quantize", "--model", tiny.model, "--format", "nf4", "--out", folder_ / "out"});
  EXPECT_EQ(names_in(folder_ / "out"), names_in(tiny.model));
  const Json config = Json::parse(read_text(folder_ / "out/config.json"));
  EXPECT_EQ(config.at("quantization_config").at("bnb_4bit_quant_type"), "nf4");
  EXPECT_EQ(config.at("quantization_config").at("llm_int8_skip_modules"), Json({"lm_head"}));
  const Arguments greedy{"generate", "--prompt", "Once", "--max-new-tokens", "8", "--ignore-eos"};
  EXPECT_EQ(json_of(joined(greedy, {"--model", folder_ / "out"})).at("ids"),
            json_of(joined(greedy, {"--model", tiny.model, "--quantize", "nf4"})).at("ids"));
  must_run({"quantize", "--model", tiny.model, "--format", "int8", "--out", folder_ / "bytes"});
  const Json other = Json::parse(read_text(folder_ / "bytes/config.json")).at("quantization_config");
  EXPECT_EQ(other.at("ignore"), Json({"lm_head"}));
  EXPECT_EQ(other.at("format"), "int-quantized");
}

// A quantized folder, and a dense one that was quantized on load: one sum, which stands alone in full
// precision.
TEST_F(Quantize, MergesAnAdapterIntoTheDequantizedBase) {
  const std::string adapter = data_file("models/adapters/all_linear"), out = folder_ / "q";
  must_run({"quantize", "--model", base_, "--format", "nf4-dq", "--out", out});
  const std::vector<float> apart = logits(out, {"--adapter", adapter});
  const Json json = json_of({"merge", "--model", out, "--adapter", adapter, "--out", folder_ / "m"});
  EXPECT_EQ(json.at("merged"), 14);
  EXPECT_EQ(json.at("worst_error"), 0);  // f32
  EXPECT_GT(json.at("worst_requantized_error"), 0.03);
  EXPECT_LT(json.at("worst_requantized_error"), 0.15);
  const std::vector<float> merged = logits(folder_ / "m");
  const auto [low, high] = std::minmax_element(apart.begin(), apart.end());
  EXPECT_LT(worst(merged, apart), 1e-5f * (*high - *low));
  EXPECT_FALSE(Json::parse(read_text(folder_ / "m/config.json")).contains("quantization_config"));
  EXPECT_EQ(json_of({"info", "--model", folder_ / "m"}).at("weight_format"), "f32");
  json_of({"merge", "--model", base_, "--quantize", "nf4-dq", "--adapter", adapter, "--out", folder_ / "n"});
  EXPECT_EQ(logits(folder_ / "n"), merged);
}

// Half a unit in the last of 8 bits of each element at most.
TEST_F(Quantize, MergeSaysWhatRoundingToTheStoredWidthCosts) {
  const auto loaded = models::load_model(base_, DType::f32, models::LoadMode::read);
  models::save_model(*loaded.model, folder_ / "bf16", DType::bf16, "");
  must_run({"quantize", "--model", folder_ / "bf16", "--format", "fp8", "--out", folder_ / "q"});
  const Json json = json_of({"merge", "--model", folder_ / "q", "--adapter",
                             data_file("models/adapters/plain"), "--out", folder_ / "m"});
  EXPECT_EQ(json.at("dtype"), "bf16");
  EXPECT_GT(json.at("worst_error"), 1e-4);
  EXPECT_LT(json.at("worst_error"), 0x1p-9);
  EXPECT_FALSE(json.at("worst_layer").get<std::string>().empty());
}

TEST_F(Quantize, RefusesWhatDoesNotFit) {
  const std::string out = folder_ / "out";
  const Arguments quantize{"quantize", "--out", out, "--model"};
  expect_user_error(run_ridge(joined(quantize, {base_, "--format", "int4-g32"})),
                    {"model.layers.0.self_attn.q_proj", "groups of 32", "[48, 48]"});
  expect_user_error(run_ridge(joined(quantize, {base_, "--format", "int5"})), {"int5", "nf4-dq"});
  expect_user_error(run_ridge(joined(quantize, {folder_ / "none", "--format", "nf4"})),
                    {"none", "config.json"});
  EXPECT_EQ(names_in(folder_.path()), std::vector<std::string>{"ids.json"});
  must_run(joined(quantize, {base_, "--format", "nf4"}));
  expect_user_error(run_ridge({"quantize", "--model", out, "--format", "int8", "--out", folder_ / "again"}),
                    {out, "quantized already"});
  const std::string ids = folder_ / "ids.json", file = folder_ / "l.safetensors";
  expect_user_error(
      run_ridge({"logits", "--model", base_, "--ids", ids, "--out", file, "--quantize", "int4"}),
      {"groups of 128", "[48, 48]"});
  expect_user_error(run_ridge({"logits", "--model", base_, "--ids", ids, "--out", file, "--quantize-head"}),
                    {"--quantize-head", "--quantize"});
  expect_user_error(run_ridge({"merge", "--model", out, "--quantize", "nf4", "--adapter",
                               data_file("models/adapters/plain"), "--out", folder_ / "m"}),
                    {"--quantize nf4", "already"});
}

}  // namespace
}  // namespace ridge
