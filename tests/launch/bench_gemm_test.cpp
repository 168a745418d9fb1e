// `ridge bench gemm`: the numbers are there and hang together.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/launch/run_program.h"

namespace ridge {
namespace {

using namespace test;
using Json = nlohmann::json;

Arguments words(const Arguments& more, const std::string& runs = "3") {
  Arguments all{"bench", "gemm", "--device", "cpu", "--runs", runs};
  all.insert(all.end(), more.begin(), more.end());
  return all;
}

const Json& find(const Json& cases, const std::string& format, std::int64_t rows, std::int64_t n) {
  for (const Json& c : cases) {
    if (c.at("format") == format && c.at("rows") == rows && c.at("n") == n) return c;
  }
  throw std::runtime_error("no " + format);
}

TEST(BenchGemm, EveryFormatRowAndShapeBesideBf16) {
  const Outcome outcome = must_run(words(
      {"--formats", "int8,nf4-dq,int4-g128-zp", "--rows", "1,64", "--shapes", "192x512,64x128", "--json"}));
  const Json report = Json::parse(outcome.out, nullptr, false);
  const Json& cases = report.at("cases");
  ASSERT_EQ(cases.size(), 4u * 2 * 2);
  const double read = report.at("read_bytes_per_s");
  for (const Json& c : cases) {
    const double seconds = c.at("seconds"), bytes = c.at("bytes");
    EXPECT_GT(c.at("best_seconds"), 0);
    EXPECT_LE(c.at("best_seconds").get<double>(), seconds);
    EXPECT_NEAR(c.at("limit_share").get<double>(), bytes / seconds / read, 1e-9);
    const Json& base = find(cases, "bf16", c.at("rows"), c.at("n"));
    EXPECT_NEAR(c.at("over_bf16").get<double>(), base.at("seconds").get<double>() / seconds, 1e-9);
    EXPECT_EQ(c.at("dequantized_first"), c.at("rows") == 64 && c.at("format") != "bf16");
  }
  // Codes, then scales and zero points, then x and y of one row.
  const double rest = 2 * (512 + 192);
  EXPECT_EQ(find(cases, "bf16", 1, 192).at("bytes"), 2 * 192 * 512 + rest);
  EXPECT_EQ(find(cases, "int8", 1, 192).at("bytes"), 192 * 512 + 4 * 192 + rest);
  EXPECT_EQ(find(cases, "int4-g128-zp", 1, 192).at("bytes"), 192 * 256 + 192 * 4 * (2 + 1) + rest);
  EXPECT_EQ(find(cases, "nf4-dq", 1, 192).at("bytes"), 192 * 256 + 192 * 8 + 4 * 6 + 4 * 257 + rest);
}

TEST(BenchGemm, ATableForPeople) {
  const std::string text =
      must_run(words({"--formats", "bf16,fp4", "--rows", "2", "--shapes", "64x128"})).out;
  EXPECT_EQ(lines_of(text).size(), 4u);  // heading, bf16, fp4, what was measured
  for (const char* part : {"over bf16", "fp4", "64 x 128", "GB/s read"})
    EXPECT_NE(text.find(part), std::string::npos) << part;
}

TEST(BenchGemm, WhatCannotBeIsSaid) {
  const auto run = [](const Arguments& more) { return run_ridge(words(more)); };
  expect_user_error(run({"--formats", "int3"}), {"int3", "int4-g128"});
  expect_user_error(run({"--formats", "int4-g128", "--shapes", "64x100"}), {"64x100", "groups of 128"});
  expect_user_error(run({"--shapes", "4096"}), {"--shapes", "4096", "NxK"});
  expect_user_error(run({"--shapes", "0x64"}), {"--shapes", "'0'"});
  expect_user_error(run({"--rows", "1,x"}), {"--rows", "'x'"});
  expect_user_error(run_ridge(words({}, "0")), {"--runs is 0"});
}

}  // namespace
}  // namespace ridge
