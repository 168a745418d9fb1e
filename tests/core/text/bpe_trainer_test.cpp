#include "core/text/bpe_trainer.h"

#include <gtest/gtest.h>

#include <chrono>
#include <random>

#include "core/base/error.h"
#include "tests/core/text/tokenizer_fixtures.h"

namespace ridge {
namespace {

using nlohmann::json;
using Strings = std::vector<std::string>;

TEST(BpeTrainer, FindsTheMergesOfTheReference) {
  const json want = test::read_fixture("trainer.json");
  const json got = json::parse(train_byte_level_bpe(
      want["text"].get<std::string>(), want["vocab_size"].get<int>(), want["special_tokens"].get<Strings>()));
  EXPECT_EQ(got["model"]["merges"], want["merges"]);
  EXPECT_EQ(got["model"]["vocab"], want["vocab"]);
}

TEST(BpeTrainer, ItsFileLoadsAndGivesTheTextBack) {
  const std::string text =
      test::read_fixture("trainer.json")["text"].get<std::string>() + "\xFF\xE2\x82 tail";
  const Tokenizer tokenizer = Tokenizer::from_json(train_byte_level_bpe(text, 400, {"<|end|>"}), "trained");
  EXPECT_EQ(tokenizer.vocab_size(), 400);
  EXPECT_EQ(tokenizer.token_to_id("<|end|>"), 0);
  const auto ids = tokenizer.encode(text, true);
  EXPECT_LT(ids.size(), text.size() * 3 / 4);
  EXPECT_EQ(tokenizer.decode(ids), text);
  EXPECT_EQ(tokenizer.encode("a<|end|>", false).back(), 0);
}

TEST(BpeTrainer, SpecialTokensInTheTextAreNotLearned) {
  std::string text;
  for (int i = 0; i < 50; ++i) text += "<|end|>ab";
  const json got = json::parse(train_byte_level_bpe(text, 300, {"<|end|>"}));
  EXPECT_EQ(got["model"]["merges"], json::parse(R"([["a", "b"]])"));
}

TEST(BpeTrainer, StopsWhereNoPairIsLeft) {
  const json got = json::parse(train_byte_level_bpe("abab abab", 1000, {}));
  EXPECT_EQ(got["model"]["vocab"].size(), 256 + got["model"]["merges"].size());
  EXPECT_EQ(json::parse(train_byte_level_bpe("", 300, {}))["model"]["merges"], json::array());
}

TEST(BpeTrainer, TheSameTextGivesTheSameFile) {
  const auto text = test::read_fixture("trainer.json")["text"].get<std::string>();
  EXPECT_EQ(train_byte_level_bpe(text, 500, {"<s>"}), train_byte_level_bpe(text, 500, {"<s>"}));
}

TEST(BpeTrainer, BadArgumentsAreUserErrors) {
  EXPECT_THROW(train_byte_level_bpe("a", 256, {"<s>"}), UserError);
  EXPECT_THROW(train_byte_level_bpe("a", -1, {}), UserError);
  EXPECT_THROW(train_byte_level_bpe("a", 300, {"<s>", "<s>"}), UserError);
  EXPECT_THROW(train_byte_level_bpe("a", 300, {""}), UserError);
  EXPECT_THROW(train_byte_level_bpe("a", 300, {"a"}), UserError);
  EXPECT_THROW(train_byte_level_bpe("a", 300, {"\xFF\xFF"}), UserError);
}

TEST(BpeTrainer, AMegabyteTakesSeconds) {
  std::mt19937 random(1);
  Strings words;
  for (int i = 0; i < 20'000; ++i) {
    std::string word = " ";
    for (std::size_t length = 2 + random() % 8; word.size() < length;)
      word += static_cast<char>('a' + random() % 26);
    words.push_back(word);
  }
  std::string text;
  while (text.size() < 1'000'000) text += words[random() % words.size() * random() % words.size()];
  const auto begin = std::chrono::steady_clock::now();
  train_byte_level_bpe(text, 1024, {});
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
  EXPECT_LT(seconds.count(), 20.0);  // 2 s with optimisation on an idle core
}

}  // namespace
}  // namespace ridge
