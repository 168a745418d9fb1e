#include "core/base/error.h"

#include <gtest/gtest.h>

namespace ridge {
namespace {

std::string user_message(const std::string& text) {
  try {
    fail_user("{}: {}", "file.json", text);
  } catch (const UserError& error) {
    return error.what();
  }
  return "no UserError";
}

TEST(UserError, IsOneLine) {
  EXPECT_EQ(user_message("field is 3, not 4"), "file.json: field is 3, not 4");
  EXPECT_EQ(user_message("a\nb\r\tc\x1b[31m\x7f"), "file.json: a\\x0ab\\x0d\\x09c\\x1b[31m\\x7f");
  EXPECT_EQ(user_message("caf\u00e9"), "file.json: caf\u00e9");
}

TEST(UserError, IsNotEndless) {
  const std::string message = user_message(std::string(1 << 20, 'x') + "the end");
  EXPECT_LT(message.size(), 3000u);
  EXPECT_TRUE(message.starts_with("file.json: xxx"));
  EXPECT_TRUE(message.ends_with("xthe end"));
  EXPECT_NE(message.find("bytes left out"), std::string::npos);
  const std::string most(2500 - std::string("file.json: ").size(), 'y');
  EXPECT_EQ(user_message(most), "file.json: " + most);
}

TEST(Errors, SayWhatWasThrown) {
  EXPECT_THROW(require(false, "x"), UserError);
  EXPECT_NO_THROW(require(true, "x"));
  EXPECT_THROW(fail("x"), Error);
  try {
    check(false, "rows are sorted");
    FAIL();
  } catch (const Error& error) {
    const std::string message = error.what();
    EXPECT_NE(message.find("error_test.cpp"), std::string::npos);
    EXPECT_NE(message.find("rows are sorted"), std::string::npos);
  }
}

}  // namespace
}  // namespace ridge
