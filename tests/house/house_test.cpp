// The house rules, held against the whole tree.
#include <fmt/core.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "tests/house/rules.h"

namespace ridge::house {
namespace {

const Tree& tree() {
  static const Tree kTree = read_tree(RIDGE_SOURCE_DIR);
  return kTree;
}

void expect_none(const Findings& findings) {
  for (const std::string& finding : findings) ADD_FAILURE() << finding;
}

TEST(House, TheTreeIsThere) {
  EXPECT_GT(tree().size(), 10u);
  EXPECT_TRUE(tree().count("core/base/error.h"));
  EXPECT_TRUE(tree().count("launch/run_config.proto"));
}

TEST(House, FoldersIncludeOnlyLowerFloors) { expect_none(floor_findings(tree())); }
TEST(House, NoCircleOfIncludes) { expect_none(circle_findings(tree())); }
TEST(House, HeavyHeadersStayInSources) { expect_none(heavy_header_findings(tree())); }
TEST(House, FilesAreShort) { expect_none(length_findings(tree())); }
TEST(House, HeadersSayWhatTheyAre) { expect_none(opening_findings(tree())); }
TEST(House, NoEnvironmentAndNoExit) { expect_none(forbidden_call_findings(tree())); }
TEST(House, NoPathOfOneMachine) { expect_none(private_path_findings(tree())); }
TEST(House, FunctionsAreShort) { expect_none(function_length_findings(tree())); }

TEST(House, TheMedianFunctionIsShort) {
  std::vector<int> lengths;
  for (const auto& [file, text] : tree()) {
    if (file.starts_with("tests/") || file.ends_with(".py") || file.ends_with(".proto")) continue;
    for (const Function& f : functions_of(file, text)) lengths.push_back(f.lines);
  }
  ASSERT_GT(lengths.size(), 20u);
  std::nth_element(lengths.begin(), lengths.begin() + static_cast<std::ptrdiff_t>(lengths.size() / 2),
                   lengths.end());
  EXPECT_LE(lengths[lengths.size() / 2], 12) << "lines of the median function";
  RecordProperty("functions", static_cast<int>(lengths.size()));
}

}  // namespace
}  // namespace ridge::house
