#include "core/base/profiler.h"

#include <gtest/gtest.h>

#include <sstream>

namespace ridge {
namespace {

constexpr std::int64_t kSecond = 1000000000;

TEST(Profiler, SumsUpByOpTheLongestFirst) {
  Profiler profiler;
  profiler.record({"b", 1, 10, 0, kSecond / 4});
  profiler.record({"a", 2, 20, kSecond, 2 * kSecond});
  profiler.record({"b", 4, 40, 3 * kSecond, 3 * kSecond + kSecond / 2});
  const auto rows = profiler.summary();
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[0].op, "a");
  EXPECT_EQ(rows[1].op, "b");
  EXPECT_EQ(rows[1].calls, 2);
  EXPECT_DOUBLE_EQ(rows[1].seconds, 0.75);
  EXPECT_EQ(rows[1].flops, 5);
  EXPECT_EQ(rows[1].bytes, 50);
  profiler.clear();
  EXPECT_TRUE(profiler.summary().empty());
}

TEST(Roofline, TheSlowerOfArithmeticAndMemory) {
  const Ceilings roof{100, 10, 5};
  EXPECT_DOUBLE_EQ(attainable_seconds(roof, 300, 1), 3);
  EXPECT_DOUBLE_EQ(attainable_seconds(roof, 100, 20), 2);
  EXPECT_DOUBLE_EQ(attainable_seconds(roof, 100, 10), 1);  // the ridge
  EXPECT_DOUBLE_EQ(attainable_seconds(Ceilings{}, 100, 10), 0);
}

// The table's row of an op, as words.
std::vector<std::string> row_of(const std::string& table, const std::string& op) {
  std::istringstream lines(table);
  for (std::string line; std::getline(lines, line);) {
    if (!line.starts_with(op)) continue;
    std::istringstream words(line.substr(op.size()));
    std::vector<std::string> row;
    for (std::string word; words >> word;) row.push_back(word);
    return row;
  }
  return {};
}

TEST(Roofline, TheTableSaysHowFarEachOpIsFromTheRoof) {
  const Ceilings roof{1e9, 1e8, 1e8};  // the ridge is at 10 operations a byte
  const std::vector<OpSummary> ops{{"matmul", 3, 2.0, 1e9, 1e6}, {"copy", 1, 1.0, 0, 5e7}};
  const std::string table = roofline_table(ops, roof, 4.0);
  using Row = std::vector<std::string>;
  EXPECT_EQ(row_of(table, "matmul"),
            (Row{"3", "2000.00", "50.0%", "500M", "500k", "1000.00", "50.0%", "compute"}));
  EXPECT_EQ(row_of(table, "copy"), (Row{"1", "1000.00", "25.0%", "0.0", "50.0M", "0.00", "50.0%", "memory"}));
  const Row all = row_of(table, "all ops");
  ASSERT_EQ(all.size(), 8u);
  EXPECT_EQ(all[0], "4");
  EXPECT_EQ(all[2], "75.0%");
  EXPECT_NE(table.find("wall 4000.00 ms; ops at their limits 1500.00 ms; outside ops 1000.00 ms"),
            std::string::npos)
      << table;
}

TEST(Roofline, ATableOfNothingIsATable) {
  EXPECT_NE(roofline_table({}, Ceilings{1, 1, 1}, 1).find("no ops were launched"), std::string::npos);
}

}  // namespace
}  // namespace ridge
