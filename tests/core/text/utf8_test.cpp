#include "core/text/utf8.h"

#include <gtest/gtest.h>

#include <random>

#include "core/text/byte_alphabet.h"

namespace ridge {
namespace {

constexpr std::string_view kBad = "\xEF\xBF\xBD";

TEST(Utf8, EveryScalarValueSurvives) {
  for (char32_t c = 0; c < 0x110000; ++c) {
    std::string text;
    utf8::append(text, c);
    const bool surrogate = c >= 0xD800 && c < 0xE000;
    ASSERT_EQ(utf8::is_valid(text), !surrogate) << static_cast<std::uint32_t>(c);
    ASSERT_EQ(utf8::is_one_code_point(text), !surrogate) << static_cast<std::uint32_t>(c);
    ASSERT_EQ(utf8::decode(text.data()).value, c);
    ASSERT_EQ(utf8::decode_last("ab" + text).value, c);
  }
}

TEST(Utf8, IllFormedSequencesAreReplacedByMaximalParts) {
  const auto bad = [](int count) {
    std::string out;
    for (int i = 0; i < count; ++i) out += kBad;
    return out;
  };
  // Unicode standard, table 3-8 and its neighbours.
  EXPECT_EQ(utf8::replace_invalid("\xC0\xAF\xE0\x80\xBF\xF0\x81\x82\x41"), bad(8) + "A");
  EXPECT_EQ(utf8::replace_invalid("\xED\xA0\x80\xED\xBF\xBF\xED\xAF\x41"), bad(8) + "A");
  EXPECT_EQ(utf8::replace_invalid("\xF4\x91\x92\x93\xFF\x41\x80\xBF\x42"), bad(5) + "A" + bad(2) + "B");
  EXPECT_EQ(utf8::replace_invalid("\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41"), bad(4) + "A");
  EXPECT_EQ(utf8::replace_invalid("plain \xC3\xA9"), "plain \xC3\xA9");
}

TEST(Utf8, IncompleteTailsAreWhatMoreBytesCanComplete) {
  EXPECT_EQ(utf8::incomplete_tail(""), 0u);
  EXPECT_EQ(utf8::incomplete_tail("a"), 0u);
  EXPECT_EQ(utf8::incomplete_tail("a\xC3"), 1u);
  EXPECT_EQ(utf8::incomplete_tail("\xE2\x82"), 2u);
  EXPECT_EQ(utf8::incomplete_tail("\xF0\x9F\x98"), 3u);
  EXPECT_EQ(utf8::incomplete_tail("\xF0\x9F\x98\x80"), 0u);
  EXPECT_EQ(utf8::incomplete_tail("\xE0\x80"), 0u);  // overlong
  EXPECT_EQ(utf8::incomplete_tail("\xED\xA0"), 0u);  // surrogate
  EXPECT_EQ(utf8::incomplete_tail("\x80\x80\x80\x80"), 0u);
  EXPECT_EQ(utf8::incomplete_tail("\xFF"), 0u);
}

TEST(Utf8, EscapesGiveAnyBytesBack) {
  std::mt19937 random(7);
  constexpr std::string_view kPieces[] = {
      "a", "\xC3\xA9", "\xED\x9F\xBF", "\xF0\x9F\x98\x80", "\xED\xB2\x80", "\xE2", "\x80"};
  for (int round = 0; round < 2000; ++round) {
    std::string bytes;
    for (auto n = random() % 30; n > 0; --n) {
      if (random() % 2) {
        bytes += static_cast<char>(random() % 256);
      } else {
        bytes += kPieces[random() % std::size(kPieces)];
      }
    }
    const std::string escaped = utf8::escape_invalid(bytes);
    ASSERT_EQ(utf8::unescape(escaped), bytes);
    ASSERT_EQ(utf8::find_escape(escaped) == std::string::npos, utf8::is_valid(bytes));
    ASSERT_TRUE(utf8::is_valid(utf8::replace_invalid(bytes)));
  }
}

TEST(Utf8, ClassesFollowUnicode) {
  for (const char32_t c : {U' ', U'\t', U'\x85', U'\xA0', U'\u1680', U'\u2003', U'\u2028', U'\u3000'})
    EXPECT_TRUE(utf8::is_space(c)) << static_cast<std::uint32_t>(c);
  for (const char32_t c : {U'a', U'\u180E', U'\u200B', U'\uFEFF', U'\0'})
    EXPECT_FALSE(utf8::is_space(c)) << static_cast<std::uint32_t>(c);
  for (const char32_t c : {U'a', U'_', U'\u00E9', U'\u0301', U'\u0663', U'\u2167', U'\u200D', U'\u24B6'})
    EXPECT_TRUE(utf8::is_word(c)) << static_cast<std::uint32_t>(c);
  for (const char32_t c : {U' ', U'-', U'\u00B2', U'\u2460', U'\u00AD'})
    EXPECT_FALSE(utf8::is_word(c)) << static_cast<std::uint32_t>(c);
  for (const char32_t c : {U'0', U'\u0663', U'\u00B2', U'\u2167'})
    EXPECT_TRUE(utf8::is_numeric(c)) << static_cast<std::uint32_t>(c);
  for (const char32_t c : {U'!', U'$', U'~', U'[', U'\u2014', U'\u3002'})
    EXPECT_TRUE(utf8::is_punctuation(c)) << static_cast<std::uint32_t>(c);
  for (const char32_t c : {U'a', U'0', U' ', U'\u20AC', U'\x7F'})
    EXPECT_FALSE(utf8::is_punctuation(c)) << static_cast<std::uint32_t>(c);
}

TEST(ByteAlphabet, IsOneToOne) {
  for (int byte = 0; byte < 256; ++byte)
    EXPECT_EQ(symbol_byte(byte_symbol(static_cast<unsigned char>(byte))), byte);
  EXPECT_EQ(byte_symbol('\n'), U'\u010A');
  EXPECT_EQ(byte_symbol(' '), U'\u0120');
  EXPECT_EQ(byte_symbol(0xAD), U'\u0143');
  for (const char32_t other : {U' ', U'\x7F', U'\xAD', U'\u0144', U'\u4E00'})
    EXPECT_EQ(symbol_byte(other), -1);
}

}  // namespace
}  // namespace ridge
