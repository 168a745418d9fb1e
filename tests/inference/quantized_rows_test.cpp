// Joined weights are the same weights.
#include "inference/quantized_rows.h"

#include <gtest/gtest.h>

#include "kernels/fill.h"
#include "tests/core/models/reference.h"

namespace ridge::inference {
namespace {

using namespace test;

QuantizedWeight random_weight(std::int64_t rows, const char* format, std::uint64_t key) {
  const Tensor w = Tensor::empty({rows, 256}, DType::f32, test_device());
  kernels::normal<float>(test_stream(), w.view<float>(), 0, 1, {key, 0});
  return quantize(w, kernels::parse_weight_format(format));
}

std::vector<double> values(const QuantizedWeight& w) { return values_of(dequantize(w, DType::f32)); }

class JoinRows : public testing::TestWithParam<const char*> {};

TEST_P(JoinRows, KeepsValuesAndMemory) {
  QuantizedWeight a = random_weight(128, GetParam(), 1), b = random_weight(256, GetParam(), 2);
  std::vector<double> wanted = values(a);
  const std::vector<double> second = values(b);
  const std::vector<double> first = wanted;
  wanted.insert(wanted.end(), second.begin(), second.end());
  const std::int64_t before = memory_stats(test_device()).live;
  const auto all = join_rows({&a, &b});
  ASSERT_TRUE(all.has_value());
  EXPECT_EQ(values(*all), wanted);
  EXPECT_EQ(values(a), first);
  EXPECT_EQ(values(b), second);
  EXPECT_EQ(all->bytes(), a.bytes() + b.bytes());
  EXPECT_LE(memory_stats(test_device()).live, before + before / 8) << "nothing is held twice";
  EXPECT_EQ(all->codes.sliced(0, 0, 128).data(), a.codes.data());
  const auto again = join_rows({&a, &b});
  ASSERT_TRUE(again.has_value());
  EXPECT_EQ(again->codes.data(), all->codes.data()) << "what lies so already stays";
}

INSTANTIATE_TEST_SUITE_P(Formats, JoinRows,
                         testing::Values("int8", "fp8", "fp8-block", "nf4", "fp4", "int4", "int4-g32-zp"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

TEST(JoinRowsNot, WhatHasScalesOfItsOwnOrOddRows) {
  QuantizedWeight a = random_weight(128, "nf4-dq", 1), b = random_weight(128, "nf4-dq", 2);
  EXPECT_FALSE(join_rows({&a, &b}).has_value());
  QuantizedWeight c = random_weight(128, "int8", 1), d = random_weight(120, "int8", 2),
                  e = random_weight(128, "fp8", 1);
  EXPECT_FALSE(join_rows({&c, &d}).has_value());
  EXPECT_FALSE(join_rows({&c, &e}).has_value());
  EXPECT_FALSE(join_rows({&c}).has_value());
}

}  // namespace
}  // namespace ridge::inference
