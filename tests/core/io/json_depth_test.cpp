#include "core/io/json_depth.h"

#include <gtest/gtest.h>

#include <string>

#include "core/base/error.h"

namespace ridge {
namespace {

std::string nested(int depth, const std::string& inside = "") {
  return std::string(static_cast<std::size_t>(depth), '[') + inside +
         std::string(static_cast<std::size_t>(depth), ']');
}

TEST(JsonDepth, CountsWhatIsOpen) {
  EXPECT_NO_THROW(check_json_depth(nested(100), "f"));
  EXPECT_THROW(check_json_depth(nested(101), "f"), UserError);
  EXPECT_THROW(check_json_depth(std::string(101, '{'), "f"), UserError);
  std::string wide = "[";
  for (int i = 0; i < 1000; ++i) wide += "{\"a\": []},";
  EXPECT_NO_THROW(check_json_depth(wide + "1]", "f"));
}

TEST(JsonDepth, StringsAreNotStructure) {
  EXPECT_NO_THROW(check_json_depth("\"" + std::string(500, '[') + "\"", "f"));
  EXPECT_NO_THROW(check_json_depth("\"\\\"" + std::string(500, '{') + "\"", "f"));
  EXPECT_THROW(check_json_depth("\"\\\\\"" + std::string(500, '['), "f"), UserError)
      << "the string ended before";
}

TEST(JsonDepth, AnyBytesWillDo) {
  for (const char* text : {"", "\"", "\"\\", "]]]]", "}{", "\xff"})
    EXPECT_NO_THROW(check_json_depth(text, "f")) << text;
}

TEST(JsonDepth, SaysWhere) {
  try {
    check_json_depth(" " + nested(200), "dir/config.json");
    FAIL();
  } catch (const UserError& error) {
    EXPECT_EQ(std::string(error.what()),
              "dir/config.json: not read: its JSON nests deeper than 100 levels at byte 101");
  }
}

}  // namespace
}  // namespace ridge
