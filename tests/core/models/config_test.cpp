#include "core/models/config.h"

#include <gtest/gtest.h>

#include "core/models/llama.h"
#include "tests/core/io/io_test_util.h"

namespace ridge::models {
namespace {

using test::expect_contains;
using test::message_of;
using Kind = kernels::RopeScaling::Kind;

ModelConfig parse(const std::string& json) { return ModelConfig::parse(json, "the/config.json"); }

// `more` are further fields of a small Llama's object.
ModelConfig llama(const std::string& more = "") {
  return parse(R"({"model_type": "llama", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48,
                   "num_hidden_layers": 2, "num_attention_heads": 4)" +
               (more.empty() ? "" : ", " + more) + "}");
}

TEST(ModelConfig, DefaultsOfLlama) {
  const ModelConfig c = parse(R"({"model_type": "llama"})");
  EXPECT_EQ(c.vocab_size, 32000);
  EXPECT_EQ(c.hidden_size, 4096);
  EXPECT_EQ(c.intermediate_size, 11008);
  EXPECT_EQ(c.layers, 32);
  EXPECT_EQ(c.heads, 32);
  EXPECT_EQ(c.kv_heads, 32);
  EXPECT_EQ(c.head_dim, 128);
  EXPECT_EQ(c.max_position, 2048);
  EXPECT_EQ(c.rms_norm_eps, 1e-6);
  EXPECT_EQ(c.initializer_range, 0.02);
  EXPECT_EQ(c.activation, "silu");
  EXPECT_FALSE(c.tied || c.qkv_bias || c.output_bias || c.mlp_bias);
  EXPECT_EQ(c.sliding_window, 0);
  EXPECT_EQ(c.rope.theta, 10000);
  EXPECT_EQ(c.rope.scaling.kind, Kind::none);
  EXPECT_EQ(c.rope.head_dim, 128);
  EXPECT_EQ(c.dtype, DType::f32);
  EXPECT_EQ(c.bos_id, 1);
  EXPECT_EQ(c.eos_ids, std::vector<std::int64_t>{2});
}

TEST(ModelConfig, DefaultsOfQwen2) {
  const ModelConfig c = parse(R"({"model_type": "qwen2"})");
  EXPECT_EQ(c.vocab_size, 151936);
  EXPECT_EQ(c.intermediate_size, 22016);
  EXPECT_EQ(c.kv_heads, 32);
  EXPECT_EQ(parse(R"({"model_type": "qwen2", "num_attention_heads": 64})").kv_heads, 32);
  EXPECT_EQ(c.max_position, 32768);
  EXPECT_TRUE(c.qkv_bias);
  EXPECT_FALSE(c.output_bias || c.mlp_bias);
  EXPECT_EQ(c.sliding_window, 0);
  EXPECT_EQ(c.bos_id, -1);
  EXPECT_TRUE(c.eos_ids.empty());
}

TEST(ModelConfig, DefaultsOfMistral) {
  const ModelConfig c = parse(R"({"model_type": "mistral"})");
  EXPECT_EQ(c.intermediate_size, 14336);
  EXPECT_EQ(c.kv_heads, 8);
  EXPECT_EQ(c.max_position, 131072);
  EXPECT_EQ(c.sliding_window, 4096);
  EXPECT_EQ(c.window(0), 4096);
  EXPECT_EQ(parse(R"({"model_type": "mistral", "sliding_window": null})").window(0), 0);
  EXPECT_EQ(parse(R"({"model_type": "mistral", "sliding_window": 7})").window(31), 7);
}

TEST(ModelConfig, TheArchitectureAloneNamesTheFamily) {
  EXPECT_EQ(parse(R"({"architectures": ["LlamaForCausalLM"]})").model_type, "llama");
  EXPECT_EQ(parse(R"({"architectures": ["Qwen2ForCausalLM"]})").model_type, "qwen2");
  EXPECT_EQ(parse(R"({"architectures": ["MistralForCausalLM"]})").model_type, "mistral");
}

TEST(ModelConfig, OldAndNewSpellingAgree) {
  const std::string scaling =
      R"("factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
         "original_max_position_embeddings": 8192)";
  const ModelConfig old = llama(R"("rope_theta": 500000.0, "torch_dtype": "bfloat16",
                                   "rope_scaling": {"rope_type": "llama3", )" +
                                scaling + "}");
  const ModelConfig now = llama(R"("dtype": "bfloat16",
                                   "rope_parameters": {"rope_theta": 500000.0, "rope_type": "llama3", )" +
                                scaling + "}");
  for (const ModelConfig& c : {old, now}) {
    EXPECT_EQ(c.dtype, DType::bf16);
    EXPECT_EQ(c.rope.theta, 500000);
    EXPECT_EQ(c.rope.scaling.kind, Kind::llama3);
    EXPECT_EQ(c.rope.scaling.factor, 8);
    EXPECT_EQ(c.rope.scaling.low_freq_factor, 1);
    EXPECT_EQ(c.rope.scaling.high_freq_factor, 4);
    EXPECT_EQ(c.rope.scaling.original_max_position, 8192);
  }
}

TEST(ModelConfig, RopeOfEverySpelling) {
  EXPECT_EQ(llama(R"("rope_scaling": null)").rope.scaling.kind, Kind::none);
  EXPECT_EQ(llama(R"("rope_scaling": {"type": "linear", "factor": 2})").rope.scaling.kind, Kind::linear);
  EXPECT_EQ(llama(R"("rope_scaling": {"type": "dynamic", "factor": 2})").rope.scaling.kind, Kind::dynamic);
  const ModelConfig yarn = llama(R"("rope_parameters": {"rope_type": "yarn", "rope_theta": 7, "factor": 2.5,
      "original_max_position_embeddings": 64, "beta_fast": 3, "beta_slow": 2, "truncate": false,
      "attention_factor": 1.5, "mscale": 0.7, "mscale_all_dim": 0.9})");
  EXPECT_EQ(yarn.rope.theta, 7);
  EXPECT_EQ(yarn.rope.scaling.kind, Kind::yarn);
  EXPECT_EQ(yarn.rope.scaling.beta_fast, 3);
  EXPECT_EQ(yarn.rope.scaling.beta_slow, 2);
  EXPECT_EQ(yarn.rope.scaling.attention_factor, 1.5);
  EXPECT_EQ(yarn.rope.scaling.mscale, 0.7);
  EXPECT_EQ(yarn.rope.scaling.mscale_all_dim, 0.9);
  EXPECT_FALSE(yarn.rope.scaling.truncate);
  const ModelConfig by_layer = llama(R"("rope_parameters": {"full_attention": {"rope_type": "linear",
      "rope_theta": 77, "factor": 3}})");
  EXPECT_EQ(by_layer.rope.scaling.kind, Kind::linear);
  EXPECT_EQ(by_layer.rope.theta, 77);
}

TEST(ModelConfig, OptionsOfTheBlocks) {
  const ModelConfig c = llama(R"("num_key_value_heads": 2, "head_dim": 20, "attention_bias": true,
      "mlp_bias": true, "hidden_act": "gelu_new", "rms_norm_eps": 1e-5, "tie_word_embeddings": true,
      "initializer_range": 0.1, "max_position_embeddings": 99, "torch_dtype": "float16")");
  EXPECT_EQ(c.kv_heads, 2);
  EXPECT_EQ(c.head_dim, 20);
  EXPECT_EQ(c.rope.head_dim, 20);
  EXPECT_EQ(c.rope.max_position, 99);
  EXPECT_TRUE(c.tied && c.qkv_bias && c.output_bias && c.mlp_bias);
  EXPECT_EQ(c.activation, "gelu_tanh");
  EXPECT_EQ(c.rms_norm_eps, 1e-5);
  EXPECT_EQ(c.initializer_range, 0.1);
  EXPECT_EQ(c.dtype, DType::f16);
  EXPECT_EQ(llama(R"("hidden_act": "gelu")").activation, "gelu");
  EXPECT_EQ(llama(R"("hidden_act": "gelu_pytorch_tanh")").activation, "gelu_tanh");
}

TEST(ModelConfig, QwenSlidesFromALayerOnWhereItIsOn) {
  const std::string window = R"("sliding_window": 5, "max_window_layers": 3)";
  const ModelConfig off = parse(R"({"model_type": "qwen2", "use_sliding_window": false, )" + window + "}");
  const ModelConfig on = parse(R"({"model_type": "qwen2", "use_sliding_window": true, )" + window + "}");
  EXPECT_EQ(off.window(31), 0);
  EXPECT_EQ(on.window(2), 0);
  EXPECT_EQ(on.window(3), 5);
}

TEST(ModelConfig, SpecialIds) {
  const ModelConfig c = llama(R"("bos_token_id": 9, "eos_token_id": [5, 7])");
  EXPECT_EQ(c.bos_id, 9);
  EXPECT_EQ(c.eos_ids, (std::vector<std::int64_t>{5, 7}));
  EXPECT_EQ(llama(R"("bos_token_id": null)").bos_id, -1);
  EXPECT_TRUE(llama(R"("eos_token_id": null)").eos_ids.empty());
  EXPECT_EQ(llama(R"("eos_token_id": 0)").eos_ids, std::vector<std::int64_t>{0});
}

TEST(ModelConfig, GenerationConfigAddsEndIds) {
  const test::TemporaryFolder folder;
  test::write_text(folder / "config.json", R"({"model_type": "llama", "eos_token_id": 4})");
  EXPECT_EQ(ModelConfig::load(folder.path()).eos_ids, std::vector<std::int64_t>{4});
  test::write_text(folder / "generation_config.json", R"({"eos_token_id": [4, 8]})");
  EXPECT_EQ(ModelConfig::load(folder.path()).eos_ids, (std::vector<std::int64_t>{4, 8}));
  test::write_text(folder / "generation_config.json", "[]");
  expect_contains(message_of([&] { ModelConfig::load(folder.path()); }), "generation_config.json");
}

TEST(ModelConfig, AFolderWithoutOneIsNamed) {
  const test::TemporaryFolder folder;
  expect_contains(message_of([&] { ModelConfig::load(folder.path()); }), folder / "config.json");
}

struct Bad {
  const char* name;
  const char* json;
  std::vector<const char*> said;  // all stand in the message
};

void PrintTo(const Bad& bad, std::ostream* out) { *out << bad.name; }

class BadConfig : public ::testing::TestWithParam<Bad> {};

TEST_P(BadConfig, OneLineNamesTheFileAndTheField) {
  const std::string message = message_of([] { parse(GetParam().json); });
  expect_contains(message, "the/config.json");
  for (const char* part : GetParam().said) expect_contains(message, part);
  EXPECT_EQ(message.find('\n'), std::string::npos) << message;
}

#define LLAMA(more) R"({"model_type": "llama", )" more "}"

INSTANTIATE_TEST_SUITE_P(
    Text, BadConfig,
    ::testing::Values(Bad{"empty", "", {"JSON"}}, Bad{"cut", R"({"model_type": )", {"JSON"}},
                      Bad{"nan", LLAMA(R"("rms_norm_eps": NaN)"), {"JSON"}},
                      Bad{"infinite", LLAMA(R"("rope_theta": 1e999)"), {"JSON"}},
                      Bad{"list", "[]", {"object"}}, Bad{"number", "3", {"object"}},
                      Bad{"no_family", "{}", {"model_type", "architectures"}},
                      Bad{"type", R"({"model_type": "gpt2"})", {"gpt2", "llama", "qwen2", "mistral"}},
                      Bad{"type_number", R"({"model_type": 3})", {"model_type", "3"}},
                      Bad{"architecture", R"({"architectures": ["GPT2LMHeadModel"]})", {"GPT2LMHeadModel"}},
                      Bad{"architecture_number", R"({"architectures": [1]})", {"1"}},
                      Bad{"disagree",
                          R"({"architectures": ["Qwen2ForCausalLM"], "model_type": "llama"})",
                          {"llama", "qwen2"}}),
    [](const auto& test) { return std::string(test.param.name); });

INSTANTIATE_TEST_SUITE_P(
    Fields, BadConfig,
    ::testing::Values(
        Bad{"text", LLAMA(R"("vocab_size": "x")"), {"vocab_size", "\"x\""}},
        Bad{"fraction", LLAMA(R"("hidden_size": 1.5)"), {"hidden_size", "1.5"}},
        Bad{"boolean", LLAMA(R"("intermediate_size": true)"), {"intermediate_size", "true"}},
        Bad{"zero", LLAMA(R"("vocab_size": 0)"), {"vocab_size", "0"}},
        Bad{"negative", LLAMA(R"("num_attention_heads": -4)"), {"num_attention_heads", "-4"}},
        Bad{"large", LLAMA(R"("vocab_size": 1099511627776)"), {"vocab_size", "1099511627776"}},
        Bad{"wraps", LLAMA(R"("hidden_size": 18446744073709551615)"), {"hidden_size"}},
        Bad{"layers", LLAMA(R"("num_hidden_layers": 100001)"), {"num_hidden_layers", "100001"}},
        Bad{"positions", LLAMA(R"("max_position_embeddings": [])"), {"max_position_embeddings"}},
        Bad{"kv_heads",
            LLAMA(R"("num_attention_heads": 6, "num_key_value_heads": 4, "head_dim": 8)"),
            {"6", "4"}},
        Bad{"head_dim_left", LLAMA(R"("num_attention_heads": 3)"), {"hidden_size", "4096", "3", "head_dim"}},
        Bad{"odd_head_dim", LLAMA(R"("head_dim": 5)"), {"head_dim", "5"}},
        Bad{"wide_head_dim", LLAMA(R"("head_dim": 2048)"), {"head_dim", "2048"}},
        Bad{"eps_text", LLAMA(R"("rms_norm_eps": "1e-5")"), {"rms_norm_eps"}},
        Bad{"eps_negative", LLAMA(R"("rms_norm_eps": -1)"), {"rms_norm_eps", "-1"}},
        Bad{"spread", LLAMA(R"("initializer_range": -0.5)"), {"initializer_range", "-0.5"}},
        Bad{"activation", LLAMA(R"("hidden_act": "relu")"), {"hidden_act", "relu", "silu"}},
        Bad{"tied", LLAMA(R"("tie_word_embeddings": "true")"), {"tie_word_embeddings"}},
        Bad{"bias", LLAMA(R"("attention_bias": 1)"), {"attention_bias", "1"}},
        Bad{"dtype", LLAMA(R"("torch_dtype": "int8")"), {"int8", "float32"}},
        Bad{"window", R"({"model_type": "mistral", "sliding_window": -3})", {"sliding_window", "-3"}},
        Bad{"eos", LLAMA(R"("eos_token_id": "x")"), {"eos_token_id"}},
        Bad{"eos_list", LLAMA(R"("eos_token_id": [2, -1])"), {"eos_token_id", "-1"}},
        Bad{"eos_fraction", LLAMA(R"("eos_token_id": [1.5])"), {"eos_token_id", "1.5"}},
        Bad{"bos", LLAMA(R"("bos_token_id": -2)"), {"bos_token_id", "-2"}},
        // 2^31 x 2^31 elements a matrix: what the sizes multiply to is no number of 64 bits
        Bad{"product",
            LLAMA(R"("hidden_size": 2147483648, "intermediate_size": 2147483648, "head_dim": 2)"),
            {"hidden_size", "2147483648"}}),
    [](const auto& test) { return std::string(test.param.name); });

INSTANTIATE_TEST_SUITE_P(
    Rope, BadConfig,
    ::testing::Values(
        Bad{"not_an_object", LLAMA(R"("rope_scaling": 3)"), {"rope_scaling"}},
        Bad{"unknown", LLAMA(R"("rope_scaling": {"type": "su", "factor": 2})"), {"su", "llama3", "yarn"}},
        Bad{"unknown_new", LLAMA(R"("rope_parameters": {"rope_type": "longrope"})"), {"longrope"}},
        Bad{"type_number", LLAMA(R"("rope_scaling": {"type": 1})"), {"type", "1"}},
        Bad{"theta_zero", LLAMA(R"("rope_theta": 0)"), {"rope_theta", "0"}},
        Bad{"theta_text", LLAMA(R"("rope_theta": "1e4")"), {"rope_theta"}},
        Bad{"no_factor", LLAMA(R"("rope_scaling": {"type": "linear"})"), {"factor"}},
        Bad{"factor_text", LLAMA(R"("rope_scaling": {"type": "linear", "factor": "2"})"), {"factor"}},
        Bad{"llama3_bounds",
            LLAMA(R"("rope_scaling": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4,
                     "high_freq_factor": 1, "original_max_position_embeddings": 64})"),
            {"high_freq_factor", "1", "4"}},
        Bad{"llama3_no_original",
            LLAMA(R"("rope_scaling": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1,
                     "high_freq_factor": 4})"),
            {"original_max_position_embeddings"}},
        Bad{"yarn_truncate",
            LLAMA(R"("rope_scaling": {"rope_type": "yarn", "factor": 8, "truncate": 1,
                     "original_max_position_embeddings": 64})"),
            {"truncate"}}),
    [](const auto& test) { return std::string(test.param.name); });

struct Known {
  const char* name;
  const char* json;
  std::int64_t parameters;  // as the model's page states it
  std::int64_t without_embedding;
  std::int64_t kv_bytes_bf16;  // a token
};

void PrintTo(const Known& known, std::ostream* out) { *out << known.name; }

class KnownModel : public ::testing::TestWithParam<Known> {};

TEST_P(KnownModel, ParametersFromTheConfigAndFromAModelWithoutMemory) {
  const ModelConfig config = parse(GetParam().json);
  EXPECT_EQ(config.parameters(), GetParam().parameters);
  EXPECT_EQ(config.parameters_without_embedding(), GetParam().without_embedding);
  EXPECT_EQ(config.kv_bytes_per_token(DType::bf16), GetParam().kv_bytes_bf16);
  const std::int64_t live = memory_stats(Device::cpu).live;
  const std::int64_t meta_live = memory_stats(Device::meta).live;
  Llama model(config, DType::bf16, Device::meta);
  std::int64_t total = 0;
  for (const nn::Parameter& p : model.parameters()) total += p.value->numel();
  EXPECT_EQ(total, GetParam().parameters);
  EXPECT_EQ(memory_stats(Device::cpu).live, live);
  const double counted = static_cast<double>(memory_stats(Device::meta).live - meta_live);
  EXPECT_GE(counted, 2.0 * static_cast<double>(total));
  EXPECT_LE(counted, 2.0 * static_cast<double>(total) * 9 / 8);
  const double flops = 6.0 * static_cast<double>(GetParam().without_embedding) +
                       6.0 * static_cast<double>(config.layers * config.heads * config.head_dim) * 1000;
  EXPECT_DOUBLE_EQ(config.train_flops_per_token(1000), flops);
}

INSTANTIATE_TEST_SUITE_P(
    All, KnownModel,
    ::testing::Values(
        Known{"Llama_2_7B", R"({"model_type": "llama"})", 6738415616, 6738415616 - 32000 * 4096,
              2 * 2 * 32 * 4096},
        Known{"Llama_3_1_8B",
              R"({"architectures": ["LlamaForCausalLM"], "vocab_size": 128256, "hidden_size": 4096,
                  "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
                  "num_key_value_heads": 8})",
              8030261248, 8030261248 - 128256LL * 4096, 131072},
        Known{"Llama_3_2_1B",
              R"({"model_type": "llama", "vocab_size": 128256, "hidden_size": 2048, "head_dim": 64,
                  "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
                  "num_key_value_heads": 8, "tie_word_embeddings": true})",
              1235814400, 1235814400, 32768},
        Known{"Qwen2_5_7B",
              R"({"model_type": "qwen2", "vocab_size": 152064, "hidden_size": 3584,
                  "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
                  "num_key_value_heads": 4})",
              7615616512, 7615616512 - 152064LL * 3584, 57344},
        Known{"Qwen2_5_05B",
              R"({"model_type": "qwen2", "vocab_size": 151936, "hidden_size": 896,
                  "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
                  "num_key_value_heads": 2, "tie_word_embeddings": true})",
              494032768, 494032768, 12288},
        Known{"Mistral_7B", R"({"model_type": "mistral"})", 7241732096, 7241732096 - 32000 * 4096, 131072}),
    [](const auto& test) { return std::string(test.param.name); });

TEST(ModelConfig, BiasesCount) {
  const ModelConfig plain = llama(), biased = llama(R"("attention_bias": true, "mlp_bias": true)");
  EXPECT_EQ(biased.parameters() - plain.parameters(), 2 * (4 * 32 + 2 * 48 + 32));
}

}  // namespace
}  // namespace ridge::models
