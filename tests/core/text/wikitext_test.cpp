#include "core/text/wikitext.h"

#include <gtest/gtest.h>

#include "core/base/error.h"
#include "tests/core/text/tokenizer_fixtures.h"

namespace ridge {
namespace {

void expect_refused(std::string_view bytes, const std::string& part) {
  try {
    check_wikitext(bytes, "wiki.test.raw");
    ADD_FAILURE() << "accepted: " << bytes;
  } catch (const UserError& error) {
    EXPECT_NE(std::string(error.what()).find("wiki.test.raw"), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
  }
}

TEST(WikiText, CountsHeadingsAndArticles) {
  const WikiTextStats stats = check_wikitext(
      " \n = One = \n \n Text = of one = . \n \n = = Part = = \n \n = 1 formula = \n More . \n = \xC3\xA0 = "
      "\n text \n \n"
      " = = = Deep = = = \n \n \n = Two = \n \n = = \n End . \n",
      "x");
  EXPECT_EQ(stats.lines, 19);
  EXPECT_EQ(stats.articles, 2);
  EXPECT_EQ(stats.headings, 4);
}

TEST(WikiText, ReadsWindowsLinesAndAMissingLastNewline) {
  const WikiTextStats stats = check_wikitext("\r\n = One = \r\n \r\n Text", "x");
  EXPECT_EQ(stats.lines, 4);
  EXPECT_EQ(stats.articles, 1);
}

TEST(WikiText, OtherFilesAreRefused) {
  expect_refused(std::string_view("PK\x03\x04\x14\x00", 6), "unpack the archive");
  expect_refused("PAR1\xFF\xFE", "not UTF-8");
  expect_refused("", "no heading");
  expect_refused(" \n \n", "no heading");
  expect_refused("Once upon a time\n = One = \n", "line 1");
  expect_refused(" \n = = Section = = \n \n", "line 2");
}

TEST(WikiText, TheDistributedSplitsHaveSixtyArticlesEach) {
  const std::string folder = RIDGE_SOURCE_DIR "/../shared/data/wikitext-2/";
  if (test::read_bytes(folder + "test.txt").empty()) GTEST_SKIP() << "no " << folder << "test.txt";
  EXPECT_EQ(check_wikitext(test::read_bytes(folder + "test.txt"), "test.txt").articles, 60);
  EXPECT_EQ(check_wikitext(test::read_bytes(folder + "valid.txt"), "valid.txt").articles, 60);
}

}  // namespace
}  // namespace ridge
