// Text that comes token by token, and ends before a stop string wherever tokens cut it.
#include "launch/reply_text.h"

#include <gtest/gtest.h>

#include "core/base/error.h"

namespace ridge {
namespace {

const Tokenizer& tokenizer() {
  static const Tokenizer kTokenizer =
      Tokenizer::load(std::string(RIDGE_SOURCE_DIR) + "/tests/data/tokenizers/gpt2.json");
  return kTokenizer;
}

// What was shown at each id, and in the end.
std::vector<std::string> shown(const std::vector<std::int32_t>& ids, const std::vector<std::string>& stops,
                               bool* stopped = nullptr) {
  ReplyText reply(tokenizer(), stops);
  std::vector<std::string> parts;
  std::string all;
  for (const std::int32_t id : ids) {
    parts.push_back(reply.push(id));
    all += parts.back();
  }
  parts.push_back(reply.flush());
  EXPECT_EQ(reply.text(), all + parts.back());
  if (stopped != nullptr) *stopped = reply.stopped();
  return parts;
}

// One token a byte: every cut of a stop string among tokens.
std::vector<std::int32_t> bytes_of(const std::string& text) {
  std::vector<std::int32_t> ids;
  for (const char c : text) {
    const auto one = tokenizer().encode_ordinary(std::string(1, c));
    ids.insert(ids.end(), one.begin(), one.end());
  }
  return ids;
}

std::string joined(const std::vector<std::string>& parts) {
  std::string all;
  for (const std::string& part : parts) all += part;
  return all;
}

TEST(ReplyText, EndsBeforeTheFirstStop) {
  bool stopped = false;
  for (const auto& ids : {bytes_of("one two three two"), tokenizer().encode_ordinary("one two three two")}) {
    EXPECT_EQ(joined(shown(ids, {"three", "wo"}, &stopped)), "one t");
    EXPECT_TRUE(stopped);
    EXPECT_EQ(joined(shown(ids, {"absent", "two three"}, &stopped)), "one ");
    EXPECT_TRUE(stopped);
    EXPECT_EQ(joined(shown(ids, {"four", "two four"}, &stopped)), "one two three two")
        << "the end shows what was held";
    EXPECT_FALSE(stopped);
  }
}

TEST(ReplyText, HoldsWhatMayBecomeAStop) {
  EXPECT_EQ(shown(bytes_of("xaab"), {"ab"}), (std::vector<std::string>{"x", "", "a", "", ""}));
  EXPECT_EQ(shown(bytes_of("xaac"), {"ab"}), (std::vector<std::string>{"x", "", "a", "ac", ""}));
  EXPECT_EQ(shown(bytes_of("abcabd"), {"abd"}), (std::vector<std::string>{"", "", "abc", "", "", "", ""}));
  EXPECT_EQ(shown(bytes_of("xa"), {"ab"}), (std::vector<std::string>{"x", "", "a"}));
}

TEST(ReplyText, ShowsWholeCharacters) {
  const std::string text = "a\xC3\xA9\xE2\x82\xAC!";
  const auto parts = shown(bytes_of(text), {});
  EXPECT_EQ(parts, (std::vector<std::string>{"a", "", "\xC3\xA9", "", "", "\xE2\x82\xAC", "!", ""}));
  EXPECT_EQ(joined(shown(bytes_of(text), {"\xE2\x82\xAC"})), "a\xC3\xA9");
}

// SentencePiece's first token of a text loses its blank; one that follows a prompt does not.
TEST(ReplyText, KeepsTheBlankAfterAPrompt) {
  const Tokenizer pieces =
      Tokenizer::load(std::string(RIDGE_SOURCE_DIR) + "/tests/data/tokenizers/llama2.json");
  const auto prompt = pieces.encode("Once upon", true), all = pieces.encode("Once upon a time", true);
  ASSERT_LT(prompt.size(), all.size());
  const auto text_after = [&](std::span<const std::int32_t> before) {
    ReplyText reply(pieces, {}, before);
    for (std::size_t i = prompt.size(); i < all.size(); ++i) reply.push(all[i]);
    reply.flush();
    return reply.text();
  };
  EXPECT_EQ(text_after(prompt), " a time");
  EXPECT_EQ(text_after({}), "a time");
  EXPECT_EQ(text_after(std::span(prompt).first(1)), "a time") << "a special token is no text";
}

TEST(ReplyText, AnEmptyStopIsAMistake) { EXPECT_THROW(ReplyText(tokenizer(), {"a", ""}), UserError); }

}  // namespace
}  // namespace ridge
