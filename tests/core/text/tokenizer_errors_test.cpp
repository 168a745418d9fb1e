// What a bad tokenizer.json, folder or id gets: a UserError that names file, field and value.
#include <gtest/gtest.h>

#include <filesystem>

#include "core/base/error.h"
#include "core/text/tokenizer_match.h"
#include "tests/core/text/tokenizer_fixtures.h"

namespace ridge {
namespace {

using nlohmann::json;

void expect_error(const std::string& document, std::initializer_list<std::string_view> parts) {
  try {
    Tokenizer::from_json(document, "some/tokenizer.json");
    ADD_FAILURE() << "accepted: " << document.substr(0, 300);
  } catch (const UserError& error) {
    const std::string message = error.what();
    EXPECT_TRUE(message.starts_with("some/tokenizer.json: ")) << message;
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
    for (const std::string_view part : parts)
      EXPECT_NE(message.find(part), std::string::npos) << part << " in " << message;
  }
}

json small() {
  return json::parse(R"({"added_tokens": [{"id": 3, "content": "<s>", "special": true, "normalized": false}],
    "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": null,
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}})");
}

// `small` with one value changed.
std::string with(const std::string& pointer, const std::string& value) {
  json document = small();
  document[json::json_pointer(pointer)] = json::parse(value);
  return document.dump();
}

TEST(TokenizerErrors, TheSmallFileItselfIsGood) {
  const Tokenizer tokenizer = Tokenizer::from_json(small().dump(), "x");
  EXPECT_EQ(tokenizer.encode("abba<s>", false), (std::vector<std::int32_t>{2, 1, 0, 3}));
  EXPECT_EQ(tokenizer.vocab_size(), 4);
  EXPECT_EQ(tokenizer.token_to_id("<s>"), 3);
  EXPECT_EQ(tokenizer.token_to_id("nope"), std::nullopt);
  EXPECT_EQ(tokenizer.id_to_token(2), "ab");
  EXPECT_TRUE(tokenizer.is_special(3));
  EXPECT_FALSE(tokenizer.is_special(2));
  EXPECT_EQ(tokenizer.bos_id(), std::nullopt);
}

TEST(TokenizerErrors, DocumentsThatAreNotATokenizer) {
  expect_error("", {"not valid JSON"});
  expect_error("{\"model\": ", {"not valid JSON at byte"});
  expect_error("{\"model\": {\"vocab\": {\"\\ud800\": 0}}}", {"not valid JSON"});
  expect_error("\"\xFF\"", {"not valid JSON"});
  expect_error("[]", {"expected an object, found array"});
  expect_error("{}", {"\"model\""});
  expect_error(std::string(200'000, '['), {"nests deeper than 100"});
  expect_error(std::string(200'000, '[') + std::string(200'000, ']'), {"nests deeper than 100"});
}

TEST(TokenizerErrors, Vocabularies) {
  expect_error(with("/model/vocab", "[]"), {"model.vocab", "expected an object, found array"});
  expect_error(with("/model/vocab", "{}"), {"model.vocab", "empty"});
  expect_error(with("/model/vocab/b", "0"), {"model.vocab[\"b\"]", "id 0", "\"a\""});
  expect_error(with("/model/vocab/b", "-1"), {"model.vocab[\"b\"]", "-1 is out of range"});
  expect_error(with("/model/vocab/b", "2000000000"), {"model.vocab[\"b\"]", "2000000000 is out of range"});
  expect_error(with("/model/vocab/b", "18446744073709551615"),
               {"model.vocab[\"b\"]", "18446744073709551615"});
  expect_error(with("/model/vocab/b", "1.5"), {"model.vocab[\"b\"]", "expected an integer"});
  expect_error(R"({"model": {"vocab": {"b": 1e400}}})", {"not valid JSON", "too large"});
}

TEST(TokenizerErrors, Merges) {
  expect_error(with("/model/merges", "[\"a c\"]"), {"model.merges", "entry 0", "\"c\""});
  expect_error(with("/model/merges", "[\"a b\", \"b a\"]"), {"entry 1", "\"ba\""});
  expect_error(with("/model/merges", "[\"ab\"]"), {"entry 0", "one space"});
  expect_error(with("/model/merges", "[\"a b c\"]"), {"entry 0", "one space"});
  expect_error(with("/model/merges", "[[\"a\"]]"), {"entry 0", "expected"});
  expect_error(with("/model/merges", "[[\"a\", 1]]"), {"entry 0", "expected"});
  expect_error(with("/model/merges", "{}"), {"model.merges", "expected an array"});
}

TEST(TokenizerErrors, UnsupportedModels) {
  expect_error(with("/model/type", "\"Unigram\""), {"model", "type is \"Unigram\"", "BPE"});
  expect_error(with("/model/dropout", "0.1"), {"model", "dropout is \"0.1\""});
  expect_error(with("/model/end_of_word_suffix", "\"</w>\""), {"end_of_word_suffix is \"</w>\""});
  expect_error(with("/model/continuing_subword_prefix", "\"##\""), {"continuing_subword_prefix"});
  expect_error(with("/model/byte_fallback", "1"),
               {"model.byte_fallback", "expected true or false, found number"});
  expect_error(with("/model/unk_token", "1"), {"model.unk_token", "expected a string"});
}

TEST(TokenizerErrors, AddedTokens) {
  expect_error(with("/added_tokens/0/id", "1"), {"added_tokens[0]", "\"<s>\" has id 1", "\"b\""});
  expect_error(with("/added_tokens/0/content", "\"a\""), {"added_tokens[0]", "\"a\" has id 3 here and 0"});
  expect_error(with("/added_tokens/0/id", "1000000000"), {"added_tokens[0]", "1000000000", "too high"});
  expect_error(with("/added_tokens/0/id", "4294967296"), {"added_tokens[0].id", "4294967296"});
  expect_error(with("/added_tokens/1", R"({"id": 3, "content": "<t>"})"),
               {"added_tokens[1]", "\"<t>\"", "\"<s>\""});
  expect_error(with("/added_tokens/1", R"({"id": 4, "content": "<s>"})"), {"added_tokens[1]", "ids 3 and 4"});
  expect_error(with("/added_tokens", "{}"), {"added_tokens", "expected an array"});
}

TEST(TokenizerErrors, UnsupportedSteps) {
  expect_error(with("/normalizer", R"({"type": "Precompiled"})"),
               {"normalizer", "type is \"Precompiled\"", "NFC"});
  expect_error(
      with("/normalizer", R"({"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "x"}]})"),
      {"normalizer.normalizers[1]", "\"x\""});
  expect_error(with("/normalizer", R"({"type": "Replace", "pattern": {"String": ""}, "content": ""})"),
               {"normalizer.pattern", "empty"});
  expect_error(with("/pre_tokenizer", R"({"type": "BertPreTokenizer"})"),
               {"pre_tokenizer", "BertPreTokenizer"});
  expect_error(with("/pre_tokenizer", R"({"type": "Split", "pattern": {"String": "a"}, "behavior": "Gone"})"),
               {"behavior is \"Gone\""});
  expect_error(
      with("/pre_tokenizer", R"({"type": "Split", "pattern": {"Glob": "a"}, "behavior": "Removed"})"),
      {"pre_tokenizer.pattern"});
  expect_error(with("/pre_tokenizer", R"({"type": "Metaspace", "replacement": "__"})"),
               {"replacement", "one character"});
  expect_error(
      with("/pre_tokenizer", R"({"type": "Metaspace", "replacement": "_", "prepend_scheme": "last"})"),
      {"\"last\""});
  expect_error(
      with("/pre_tokenizer",
           R"({"type": "Sequence", "pretokenizers": [{"type": "ByteLevel"}, {"type": "ByteLevel"}]})"),
      {"pretokenizers[1]", "second ByteLevel"});
  expect_error(with("/decoder", R"({"type": "WordPiece"})"), {"decoder", "WordPiece"});
  expect_error(with("/decoder", R"({"type": "Strip", "content": " ", "start": -1, "stop": 0})"),
               {"decoder.start", "-1"});
  expect_error(
      with(
          "/post_processor",
          R"({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>"}}], "special_tokens": {}})"),
      {"post_processor.special_tokens", "<s>"});
  expect_error(with("/post_processor", R"({"type": "BertProcessing", "sep": ["x", 9], "cls": ["a", 0]})"),
               {"post_processor", "id 9"});
  expect_error(
      with("/post_processor", R"({"type": "TemplateProcessing", "single": [], "special_tokens": {}})"),
      {"single", "does not occur"});
}

TEST(TokenizerErrors, DeepSequencesAreRefused) {
  for (const auto& [field, list] : {std::pair{"normalizer", "normalizers"},
                                    {"pre_tokenizer", "pretokenizers"},
                                    {"post_processor", "processors"},
                                    {"decoder", "decoders"}}) {
    json step = {{"type", "Sequence"}, {list, json::array()}};
    for (int depth = 0; depth < 200; ++depth) step = {{"type", "Sequence"}, {list, json::array({step})}};
    json document = small();
    document[field] = step;
    expect_error(document.dump(), {"nests deeper than 100"});
  }
}

std::string split_on(const std::string& pattern) {
  const json step = {{"type", "Split"}, {"pattern", {{"Regex", pattern}}}, {"behavior", "Isolated"}};
  return with("/pre_tokenizer", step.dump());
}

TEST(TokenizerErrors, PatternsThatCannotBeUsed) {
  expect_error(split_on("(a"), {"pre_tokenizer.pattern.Regex", "\"(a\"", "byte"});
  expect_error(split_on("[a"), {"closing bracket"});
  expect_error(split_on("\\p{Nonsense}"), {"pre_tokenizer.pattern.Regex"});
  expect_error(split_on(std::string(20'000, 'a')), {"20000 bytes"});
  expect_error(split_on(std::string(8'000, '(') + std::string(8'000, ')')), {"pre_tokenizer.pattern.Regex"});
  // What PCRE2 would read differently from Oniguruma.
  for (const std::string pattern :
       {"\\h", "[[:alpha:]]", "[a&&b]", "\\p{N}{1,3}+", "a{,2}", "a{2}?", "(?m:.)", "(?s:.)", "a(?i)b|c",
        "(*FAIL)", "\\K", "\\C", "\\v", "\\xE9", "\\o{101}", "[a-\\s]", "(?P<a>b)", "(?R)", "\\"}) {
    expect_error(split_on(pattern), {"pre_tokenizer.pattern.Regex", "is not supported"});
  }
}

TEST(TokenizerErrors, RunawayPatternsGiveUp) {
  const Tokenizer tokenizer = Tokenizer::from_json(split_on("(a+)+$"), "some/tokenizer.json");
  const std::string text = std::string(60, 'a') + "b";
  try {
    tokenizer.encode(text, false);
    ADD_FAILURE() << "no error";
  } catch (const UserError& error) {
    EXPECT_NE(std::string(error.what()).find("pre_tokenizer.pattern.Regex"), std::string::npos)
        << error.what();
  }
}

TEST(TokenizerErrors, IdsThatNoTokenHas) {
  const Tokenizer tokenizer = test::load_fixture("gpt2");
  for (const std::int32_t id : {-1, static_cast<std::int32_t>(tokenizer.vocab_size()), 2'147'483'647}) {
    const std::int32_t ids[] = {0, id};
    try {
      tokenizer.decode(ids);
      ADD_FAILURE() << id;
    } catch (const UserError& error) {
      const std::string message = error.what();
      EXPECT_NE(message.find(std::to_string(id)), std::string::npos) << message;
      EXPECT_NE(message.find(std::to_string(tokenizer.vocab_size())), std::string::npos) << message;
    }
    EXPECT_THROW(tokenizer.id_to_token(id), UserError);
    EXPECT_THROW(DecodeStream(tokenizer).push(id), UserError);
  }
}

TEST(TokenizerErrors, AnUnknownTokenThatIsMissingIsNamedWhenNeeded) {
  const Tokenizer tokenizer = Tokenizer::from_json(with("/model/unk_token", "\"<unk>\""), "x");
  EXPECT_EQ(tokenizer.encode("ab", false).size(), 1u);
  try {
    tokenizer.encode("\xE2\x82\xAC", false);
    ADD_FAILURE() << "no error";
  } catch (const UserError& error) {
    EXPECT_NE(std::string(error.what()).find("U+20AC"), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find("<unk>"), std::string::npos) << error.what();
  }
}

class TokenizerFolder : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::path(testing::TempDir()) /
              testing::UnitTest::GetInstance()->current_test_info()->name();
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  void write(const std::string& name, const std::string& text) { std::ofstream(folder_ / name) << text; }
  std::string load_error() {
    try {
      Tokenizer::load(folder_.string());
      return "";
    } catch (const UserError& error) {
      return error.what();
    }
  }
  std::filesystem::path folder_;
};

TEST_F(TokenizerFolder, NamesOfBosAndEosComeFromTheConfig) {
  write("tokenizer.json", small().dump());
  EXPECT_EQ(Tokenizer::load(folder_.string()).bos_id(), std::nullopt);
  write("tokenizer_config.json", R"({"bos_token": {"content": "<s>", "lstrip": false}, "eos_token": null})");
  write("special_tokens_map.json", R"({"bos_token": "a", "eos_token": "ab"})");
  const Tokenizer tokenizer = Tokenizer::load(folder_.string());
  EXPECT_EQ(tokenizer.bos_id(), 3);
  EXPECT_EQ(tokenizer.eos_id(), 2);
  EXPECT_EQ(Tokenizer::load((folder_ / "tokenizer.json").string()).eos_id(), 2);
}

TEST_F(TokenizerFolder, ErrorsNameTheFile) {
  EXPECT_NE(load_error().find("tokenizer.json: no such file"), std::string::npos) << load_error();
  write("tokenizer.json", "{");
  EXPECT_NE(load_error().find("tokenizer.json: not valid JSON"), std::string::npos) << load_error();
  write("tokenizer.json", small().dump());
  write("tokenizer_config.json", R"({"bos_token": "<bos>"})");
  EXPECT_NE(load_error().find("tokenizer_config.json: bos_token: \"<bos>\""), std::string::npos)
      << load_error();
  write("tokenizer_config.json", R"({"eos_token": 7})");
  EXPECT_NE(load_error().find("tokenizer_config.json: eos_token: expected a string"), std::string::npos)
      << load_error();
}

}  // namespace
}  // namespace ridge
