#include "lora/lora_config.h"

#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "tests/core/io/io_test_util.h"

namespace ridge::lora {
namespace {

using test::expect_contains;
using test::message_of;

const std::string kQ = "model.layers.0.self_attn.q_proj";
const std::string kDown = "model.layers.11.mlp.down_proj";

LoraConfig parse(const std::string& json) {
  std::vector<std::string> notes;
  return LoraConfig::parse(json, "the/adapter_config.json", notes);
}

LoraConfig with_targets(std::vector<std::string> targets) {
  LoraConfig config;
  config.targets = std::move(targets);
  return config;
}

TEST(LoraConfig, DefaultsArePefts) {
  const LoraConfig c = parse("{}");
  EXPECT_EQ(c.rank, 8);
  EXPECT_EQ(c.alpha, 8);
  EXPECT_EQ(c.dropout, 0);
  EXPECT_FALSE(c.use_rslora);
  EXPECT_EQ(c.targets, (std::vector<std::string>{"q_proj", "v_proj"}));
  EXPECT_EQ(parse(R"({"target_modules": null})").targets, c.targets);
  EXPECT_EQ(parse(R"({"task_type": null})").alpha, 8);
}

TEST(LoraConfig, EveryFieldIsRead) {
  const LoraConfig c = parse(R"({"peft_type": "LORA", "r": 5, "lora_alpha": 7.5, "lora_dropout": 0.25,
      "use_rslora": true, "target_modules": ["k_proj", "mlp.up_proj"], "exclude_modules": ["layers.0.mlp.up_proj"],
      "layers_to_transform": [0, 3], "rank_pattern": {"k_proj": 2}, "alpha_pattern": {"up_proj": 1.5},
      "base_model_name_or_path": "some/base", "bias": "none"})");
  EXPECT_EQ(c.rank, 5);
  EXPECT_EQ(c.alpha, 7.5);
  EXPECT_EQ(c.dropout, 0.25);
  EXPECT_TRUE(c.use_rslora);
  EXPECT_EQ(c.targets, (std::vector<std::string>{"k_proj", "mlp.up_proj"}));
  EXPECT_EQ(c.exclude, std::vector<std::string>{"layers.0.mlp.up_proj"});
  EXPECT_EQ(c.layers, (std::vector<std::int64_t>{0, 3}));
  EXPECT_EQ(c.rank_pattern.at("k_proj"), 2);
  EXPECT_EQ(c.alpha_pattern.at("up_proj"), 1.5);
  EXPECT_EQ(c.base_model, "some/base");
  EXPECT_EQ(parse(R"({"layers_to_transform": 4})").layers, std::vector<std::int64_t>{4});
}

TEST(LoraConfig, NamesMatchWholePartsAtTheEnd) {
  EXPECT_TRUE(with_targets({"q_proj"}).targets_layer(kQ));
  EXPECT_TRUE(with_targets({"self_attn.q_proj"}).targets_layer(kQ));
  EXPECT_TRUE(with_targets({"v_proj", kQ}).targets_layer(kQ));
  EXPECT_TRUE(with_targets({"lm_head"}).targets_layer("lm_head"));
  EXPECT_FALSE(with_targets({"proj"}).targets_layer(kQ));
  EXPECT_FALSE(with_targets({"_proj"}).targets_layer(kQ));
  EXPECT_FALSE(with_targets({"self_attn"}).targets_layer(kQ));
  EXPECT_FALSE(with_targets({"Q_PROJ"}).targets_layer(kQ));
  EXPECT_FALSE(with_targets({".*q_proj"}).targets_layer(kQ));  // names are no patterns
  EXPECT_FALSE(with_targets({"x" + kQ}).targets_layer(kQ));
  EXPECT_FALSE(with_targets({}).targets_layer(kQ));
}

TEST(LoraConfig, AllLinearLeavesTheOutputLayer) {
  const LoraConfig c = parse(R"({"target_modules": "all-linear"})");
  EXPECT_TRUE(c.targets_layer(kQ));
  EXPECT_TRUE(c.targets_layer(kDown));
  EXPECT_FALSE(c.targets_layer("lm_head"));
}

TEST(LoraConfig, APatternIsForTheWholeName) {
  const LoraConfig c = parse(R"({"target_modules": ".*\\.layers\\.\\d+\\.(self_attn\\.q|mlp\\.down)_proj"})");
  EXPECT_TRUE(c.targets_layer(kQ));
  EXPECT_TRUE(c.targets_layer(kDown));
  EXPECT_FALSE(c.targets_layer(kQ + "x"));
  EXPECT_FALSE(c.targets_layer("model.layers.0.self_attn.v_proj"));
  EXPECT_FALSE(parse(R"({"target_modules": "q_proj"})").targets_layer(kQ));  // one word is a pattern too
  EXPECT_TRUE(parse(R"({"target_modules": ".*q_proj"})").targets_layer(kQ));
}

TEST(LoraConfig, ExclusionsAndLayersNarrowTheTargets) {
  LoraConfig c = with_targets({"q_proj", "down_proj"});
  c.exclude = {"layers.0.self_attn.q_proj"};
  EXPECT_FALSE(c.targets_layer(kQ));
  EXPECT_TRUE(c.targets_layer("model.layers.1.self_attn.q_proj"));
  c.exclude = {};
  c.exclude_pattern = ".*self_attn.*";
  EXPECT_FALSE(c.targets_layer(kQ));
  EXPECT_TRUE(c.targets_layer(kDown));
  c.exclude_pattern = "";
  c.layers = {1, 11};
  EXPECT_FALSE(c.targets_layer(kQ));
  EXPECT_TRUE(c.targets_layer(kDown));
  EXPECT_TRUE(c.targets_layer("model.layers.1.self_attn.q_proj"));
  EXPECT_EQ(parse(R"({"exclude_modules": ".*q_proj"})").exclude_pattern, ".*q_proj");
}

TEST(LoraConfig, RankAndAlphaByPatternOfTheNamesEnd) {
  LoraConfig c;
  c.rank = 8;
  c.alpha = 16;
  c.rank_pattern = {{"q_proj", 2}, {R"(layers\.1\d\.mlp\.down_proj)", 4}};
  c.alpha_pattern = {{"down_proj", 6}};
  EXPECT_EQ(c.rank_of(kQ), 2);
  EXPECT_EQ(c.rank_of(kDown), 4);
  EXPECT_EQ(c.rank_of("model.layers.1.mlp.down_proj"), 8);
  EXPECT_EQ(c.rank_of("model.layers.0.self_attn.xq_proj"), 8);  // a pattern begins at a part
  EXPECT_EQ(c.alpha_of(kDown), 6);
  EXPECT_EQ(c.alpha_of(kQ), 16);
  EXPECT_DOUBLE_EQ(c.scaling_of(kQ), 8);
  EXPECT_DOUBLE_EQ(c.scaling_of(kDown), 1.5);
  c.use_rslora = true;
  EXPECT_DOUBLE_EQ(c.scaling_of(kQ), 16 / std::sqrt(2.0));
  EXPECT_DOUBLE_EQ(c.scaling_of("other"), 16 / std::sqrt(8.0));
}

TEST(LoraConfig, UnknownKeysAreNotedWhereTheyAreSet) {
  std::vector<std::string> notes;
  LoraConfig::parse(R"({"r": 4, "new_trick": 3, "other_trick": null, "third_trick": false})", "a.json",
                    notes);
  ASSERT_EQ(notes.size(), 1u);
  expect_contains(notes[0], "new_trick");
  expect_contains(notes[0], "a.json");
}

void expect_same(const LoraConfig& a, const LoraConfig& b) {
  EXPECT_EQ(a.rank, b.rank);
  EXPECT_EQ(a.alpha, b.alpha);
  EXPECT_EQ(a.dropout, b.dropout);
  EXPECT_EQ(a.use_rslora, b.use_rslora);
  EXPECT_EQ(a.targets, b.targets);
  EXPECT_EQ(a.target_pattern, b.target_pattern);
  EXPECT_EQ(a.exclude, b.exclude);
  EXPECT_EQ(a.exclude_pattern, b.exclude_pattern);
  EXPECT_EQ(a.layers, b.layers);
  EXPECT_EQ(a.rank_pattern, b.rank_pattern);
  EXPECT_EQ(a.alpha_pattern, b.alpha_pattern);
  EXPECT_EQ(a.base_model, b.base_model);
}

TEST(LoraConfig, WrittenAndReadAgainIsTheSame) {
  LoraConfig c = with_targets({"q_proj", "k_proj"});
  c.rank = 3;
  c.alpha = 2.5;
  c.dropout = 0.1;
  c.use_rslora = true;
  c.exclude = {"layers.0.self_attn.q_proj"};
  c.layers = {0, 2};
  c.rank_pattern = {{R"(a\.b)", 3}};
  c.alpha_pattern = {{"b", 0.5}};
  c.base_model = "base \"quoted\"";
  expect_same(parse(c.to_json()), c);
  LoraConfig p;
  p.target_pattern = ".*q_proj";
  p.exclude_pattern = ".*0.*";
  expect_same(parse(p.to_json()), p);
  expect_same(parse(with_targets({"all-linear"}).to_json()), with_targets({"all-linear"}));
}

TEST(LoraConfig, WrittenAsPeftWritesIt) {
  LoraConfig c = with_targets({"all-linear"});
  c.alpha = 16;
  const auto json = nlohmann::json::parse(c.to_json());
  EXPECT_EQ(json.at("peft_type"), "LORA");
  EXPECT_EQ(json.at("task_type"), "CAUSAL_LM");
  EXPECT_EQ(json.at("target_modules"), "all-linear");
  EXPECT_TRUE(json.at("lora_alpha").is_number_integer());
  EXPECT_TRUE(json.at("base_model_name_or_path").is_null());
  EXPECT_EQ(json.at("bias"), "none");
}

TEST(MatchesPattern, TheWholeNameOnly) {
  EXPECT_TRUE(matches_pattern("a|ab", "ab"));  // the second branch: a match must reach the end
  EXPECT_FALSE(matches_pattern("a", "ab"));
  EXPECT_FALSE(matches_pattern("b", "ab"));
  expect_contains(message_of([] { matches_pattern("(a", "a"); }), "(a");
}

TEST(MatchesPattern, APatternThatWouldTakeForEverIsAnError) {
  const std::string pattern = "(a|aa|a?a)+[^a]";
  expect_contains(message_of([&] { matches_pattern(pattern, std::string(60, 'a')); }), pattern);
}

struct Bad {
  const char* name;
  const char* json;
  std::vector<const char*> said;
};
void PrintTo(const Bad& bad, std::ostream* out) { *out << bad.name; }

class BadLoraConfig : public ::testing::TestWithParam<Bad> {};

TEST_P(BadLoraConfig, OneLineNamesTheFileAndTheField) {
  const std::string message = message_of([] { parse(GetParam().json); });
  expect_contains(message, "the/adapter_config.json");
  for (const char* part : GetParam().said) expect_contains(message, part);
  EXPECT_EQ(message.find('\n'), std::string::npos) << message;
}

INSTANTIATE_TEST_SUITE_P(
    All, BadLoraConfig,
    ::testing::Values(
        Bad{"text", "{", {"JSON"}}, Bad{"list", "[1]", {"JSON object"}},
        Bad{"kind", R"({"peft_type": "ADALORA"})", {"ADALORA", "LORA"}},
        Bad{"kind_number", R"({"peft_type": 1})", {"peft_type", "1"}},
        Bad{"bias", R"({"bias": "all"})", {"bias", "all"}},
        Bad{"bias_number", R"({"bias": 1})", {"bias", "1"}},
        Bad{"dora", R"({"use_dora": true})", {"use_dora"}},
        Bad{"modules", R"({"modules_to_save": ["lm_head"]})", {"modules_to_save", "lm_head"}},
        Bad{"fan", R"({"fan_in_fan_out": true})", {"fan_in_fan_out"}},
        Bad{"rank_zero", R"({"r": 0})", {"r is 0"}}, Bad{"rank_negative", R"({"r": -3})", {"-3"}},
        Bad{"rank_text", R"({"r": "8"})", {"r is"}}, Bad{"rank_fraction", R"({"r": 1.5})", {"1.5"}},
        Bad{"rank_large", R"({"r": 1000000})", {"1000000"}},
        Bad{"alpha", R"({"lora_alpha": "x"})", {"lora_alpha", "x"}},
        Bad{"alpha_of_none", R"({"lora_alpha": 0})", {"lora_alpha is 0", "above 0"}},
        Bad{"alpha_below", R"({"lora_alpha": -3})", {"lora_alpha is -3", "above 0"}},
        Bad{"alpha_of_a_pattern", R"({"alpha_pattern": {"q_proj": 0}})", {"alpha_pattern", "q_proj", "is 0"}},
        Bad{"task", R"({"task_type": "SEQ_CLS"})", {"task_type SEQ_CLS", "CAUSAL_LM"}},
        Bad{"dropout_one", R"({"lora_dropout": 1})", {"lora_dropout", "1"}},
        Bad{"dropout_negative", R"({"lora_dropout": -0.1})", {"lora_dropout", "-0.1"}},
        Bad{"rslora", R"({"use_rslora": "yes"})", {"use_rslora"}},
        Bad{"targets_number", R"({"target_modules": 3})", {"target_modules", "3"}},
        Bad{"targets_numbers", R"({"target_modules": [3]})", {"target_modules", "3"}},
        Bad{"pattern", R"({"target_modules": "(q_proj"})", {"(q_proj"}},
        Bad{"exclude", R"({"exclude_modules": {"a": 1}})", {"exclude_modules"}},
        Bad{"layers", R"({"layers_to_transform": ["a"]})", {"layers_to_transform", "a"}},
        Bad{"rank_pattern", R"({"rank_pattern": [1]})", {"rank_pattern"}},
        Bad{"rank_pattern_value", R"({"rank_pattern": {"q_proj": 0}})", {"rank_pattern", "0"}},
        Bad{"rank_pattern_key", R"({"rank_pattern": {"[": 2}})", {"["}},
        Bad{"alpha_pattern", R"({"alpha_pattern": {"q_proj": "2"}})", {"alpha_pattern", "q_proj"}},
        Bad{"base", R"({"base_model_name_or_path": 3})", {"base_model_name_or_path", "3"}}),
    [](const auto& test) { return std::string(test.param.name); });

TEST(LoraConfig, ANullKindIsLora) { EXPECT_EQ(parse(R"({"peft_type": null, "r": 3})").rank, 3); }

TEST(LoraConfig, AnEmptyListTargetsNothing) {
  EXPECT_FALSE(parse(R"({"target_modules": []})").targets_layer(kQ));
}

}  // namespace
}  // namespace ridge::lora
