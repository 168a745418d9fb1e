#include "core/io/quote.h"

#include <gtest/gtest.h>

namespace ridge {
namespace {

TEST(Shown, MakesOneLine) {
  EXPECT_EQ(shown("a.b"), "'a.b'");
  EXPECT_EQ(shown("a\nb\x7f"), "'a\\x0ab\\x7f'");
  EXPECT_EQ(shown(std::string(121, 'x')), "'" + std::string(120, 'x') + "...'");
}

TEST(IsUtf8, AcceptsWellFormedOnly) {
  for (const char* good : {"", "ascii", "\u00e9", "\u20ac", "\U0001F600", "\uD7FF", "\uE000", "\U0010FFFF"}) {
    EXPECT_TRUE(is_utf8(good)) << good;
  }
  // Lone continuation, cut sequence, overlong forms, surrogate, past U+10FFFF, invalid lead.
  for (const char* bad : {"\x80", "a\xC3", "\xC0\xAF", "\xE0\x80\xAF", "\xF0\x80\x80\xAF", "\xED\xA0\x80",
                          "\xF4\x90\x80\x80", "\xF8\x88\x80\x80\x80", "\xE2\x28\xA1", "\xFF"}) {
    EXPECT_FALSE(is_utf8(bad)) << bad;
  }
}

}  // namespace
}  // namespace ridge
