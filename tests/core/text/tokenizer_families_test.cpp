// Ids and texts of every family against Hugging Face `tokenizers`.
#include <gtest/gtest.h>

#include <algorithm>

#include "core/text/utf8.h"
#include "tests/core/text/tokenizer_fixtures.h"

namespace ridge {
namespace {

using nlohmann::json;
using test::read_fixture;
using test::visible;
using Ids = std::vector<std::int32_t>;

struct Family {
  const char* tokenizer;  // file of the tokenizer
  const char* cases;      // file of the expectations
};

class TokenizerFamily : public testing::TestWithParam<Family> {};

TEST_P(TokenizerFamily, EncodesAndDecodesAsTheReference) {
  const Tokenizer tokenizer = test::load_fixture(GetParam().tokenizer);
  const json expected = read_fixture(std::string(GetParam().cases) + ".cases.json");
  const json texts = read_fixture("texts.json");
  ASSERT_EQ(texts.size(), expected["cases"].size());
  for (std::size_t i = 0; i < texts.size(); ++i) {
    const auto text = texts[i].get<std::string>();
    const json& want = expected["cases"][i];
    SCOPED_TRACE("text " + std::to_string(i) + ": " + visible(text));
    const Ids plain = tokenizer.encode(text, false), special = tokenizer.encode(text, true);
    EXPECT_EQ(plain, want["ids"].get<Ids>());
    EXPECT_EQ(special, want.value("special_ids", want["ids"]).get<Ids>());
    EXPECT_EQ(tokenizer.decode_utf8(plain), want["decoded"].get<std::string>());
    EXPECT_EQ(tokenizer.decode_utf8(special, false), want["with_special"].get<std::string>());
  }
}

TEST_P(TokenizerFamily, DecodesPartsOfCharactersAsTheReference) {
  const Tokenizer tokenizer = test::load_fixture(GetParam().tokenizer);
  const json expected = read_fixture(std::string(GetParam().cases) + ".cases.json");
  EXPECT_EQ(tokenizer.vocab_size(), expected["vocab_size"].get<std::int64_t>());
  for (const json& want : expected["partial"]) {
    Ids ids = want["ids"].get<Ids>();
    const auto unknown = [&](std::int32_t id) {  // holes: the reference leaves them out, we refuse
      try {
        tokenizer.id_to_token(id);
        return false;
      } catch (const std::exception&) {
        return true;
      }
    };
    std::erase_if(ids, unknown);
    EXPECT_EQ(tokenizer.decode_utf8(ids), want["decoded"].get<std::string>());
    EXPECT_EQ(tokenizer.decode_utf8(ids, false), want["with_special"].get<std::string>());
  }
}

TEST_P(TokenizerFamily, StreamsWhatItDecodes) {
  const Tokenizer tokenizer = test::load_fixture(GetParam().tokenizer);
  for (const json& entry : read_fixture("texts.json")) {
    const auto text = entry.get<std::string>();
    const Ids ids = tokenizer.encode(text, true);
    for (const bool skip : {true, false}) {
      DecodeStream stream(tokenizer, skip);
      std::string streamed;
      for (const std::int32_t id : ids) {
        const std::string part = stream.push(id);
        EXPECT_TRUE(utf8::is_valid(part)) << visible(part) << " of " << visible(text);
        streamed += part;
      }
      streamed += stream.flush();
      EXPECT_EQ(streamed, utf8::replace_invalid(tokenizer.decode(ids, skip))) << visible(text);
    }
  }
}

std::string family_name(const testing::TestParamInfo<Family>& info) {
  std::string name = info.param.tokenizer;
  std::replace(name.begin(), name.end(), '.', '_');
  return name;
}

constexpr Family kFamilies[] = {{"gpt2", "gpt2"},
                                {"gpt2.legacy_merges", "gpt2"},
                                {"gpt2_prefix_space", "gpt2_prefix_space"},
                                {"llama3", "llama3"},
                                {"qwen2", "qwen2"},
                                {"tekken", "tekken"},
                                {"deepseek", "deepseek"},
                                {"o200k", "o200k"},
                                {"falcon", "falcon"},
                                {"starcoder", "starcoder"},
                                {"llama2", "llama2"},
                                {"llama2.legacy_merges", "llama2"},
                                {"llama2_partial_bytes", "llama2_partial_bytes"},
                                {"gemma", "gemma"},
                                {"metaspace_first", "metaspace_first"},
                                {"metaspace_first_whole", "metaspace_first_whole"},
                                {"metaspace_always", "metaspace_always"},
                                {"metaspace_never", "metaspace_never"},
                                {"unknown", "unknown"},
                                {"unknown_fused", "unknown_fused"},
                                {"no_unknown", "no_unknown"}};
INSTANTIATE_TEST_SUITE_P(All, TokenizerFamily, testing::ValuesIn(kFamilies), family_name);

TEST(TokenizerShared, RealTokenizersGiveTheReferenceIds) {
  const std::string shared = RIDGE_SOURCE_DIR "/../shared/";
  const std::string text = test::read_bytes(shared + "data/wikitext-2/test.txt");
  if (text.empty()) GTEST_SKIP() << "no " << shared << "data/wikitext-2/test.txt";
  const json expected = read_fixture("shared.json");
  for (const auto& [name, want] : expected.items()) {
    SCOPED_TRACE(name);
    const Tokenizer tokenizer = Tokenizer::load(shared + name);
    std::size_t head = 0;  // bytes of the first characters
    for (auto left = want["characters"].get<int>(); left > 0; --left) {
      do ++head;
      while ((static_cast<unsigned char>(text[head]) & 0xC0) == 0x80);
    }
    EXPECT_EQ(tokenizer.encode(std::string_view(text).substr(0, head), true), want["ids"].get<Ids>());
    const Ids whole = tokenizer.encode(text, false);
    ASSERT_EQ(whole.size(), want["whole_count"].get<std::size_t>());
    std::uint64_t sum = 0;
    for (std::size_t i = 0; i < whole.size(); ++i)
      sum += (i % 65521 + 1) * static_cast<std::uint64_t>(whole[i]);
    EXPECT_EQ(sum % (std::uint64_t{1} << 61), want["whole_weighted_sum"].get<std::uint64_t>());
    const bool is_exact = name == "tokenizers/gpt2";  // the other puts a space after each <unk> of the text
    EXPECT_EQ(tokenizer.decode(whole, false) == text, is_exact);
  }
}

}  // namespace
}  // namespace ridge
