#include "core/text/sample_order.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>
#include <vector>

namespace ridge {
namespace {

std::vector<std::int64_t> epoch(const SampleOrder& order, std::int64_t number) {
  std::vector<std::int64_t> samples;
  for (std::int64_t k = 0; k < order.samples(); ++k)
    samples.push_back(order.at(number * order.samples() + k));
  return samples;
}

TEST(SampleOrder, SamplesThatAStreamHolds) {
  EXPECT_EQ(SampleOrder::count(0, 4), 0);
  EXPECT_EQ(SampleOrder::count(1, 4), 0);
  EXPECT_EQ(SampleOrder::count(4, 4), 0);
  EXPECT_EQ(SampleOrder::count(5, 4), 1);  // four inputs and the last target
  EXPECT_EQ(SampleOrder::count(8, 4), 1);
  EXPECT_EQ(SampleOrder::count(9, 4), 2);
}

TEST(SampleOrder, SequentialGoesRound) {
  const SampleOrder order(5, false, 7);
  for (std::int64_t k = 0; k < 23; ++k) EXPECT_EQ(order.at(k), k % 5);
}

TEST(SampleOrder, EveryEpochHasEverySampleOnce) {
  for (const std::int64_t n : {1, 2, 3, 4, 5, 15, 16, 17, 63, 64, 65, 255, 256, 257, 1000, 65537}) {
    const SampleOrder order(n, true, 11);
    for (const std::int64_t number : {0, 1, 1000}) {
      const auto samples = epoch(order, number);
      const std::set<std::int64_t> different(samples.begin(), samples.end());
      ASSERT_EQ(static_cast<std::int64_t>(different.size()), n);
      ASSERT_EQ(*different.begin(), 0);
      ASSERT_EQ(*different.rbegin(), n - 1);
    }
  }
}

TEST(SampleOrder, EpochsAndSeedsDiffer) {
  const SampleOrder order(100, true, 1), same(100, true, 1), other(100, true, 2);
  EXPECT_EQ(epoch(order, 0), epoch(same, 0));
  EXPECT_NE(epoch(order, 0), epoch(order, 1));
  EXPECT_NE(epoch(order, 0), epoch(other, 0));
  EXPECT_NE(epoch(order, 0), epoch(SampleOrder(100, false, 1), 0));
}

// The mean of samples at even places, and the distance to the next, are those of a random permutation.
TEST(SampleOrder, LooksRandom) {
  const std::int64_t n = 4096;
  const auto samples = epoch(SampleOrder(n, true, 3), 0);
  double even = 0, jump = 0;
  std::int64_t rising = 0;
  for (std::size_t k = 0; k + 1 < samples.size(); ++k) {
    if (k % 2 == 0) even += static_cast<double>(samples[k]);
    jump += std::fabs(static_cast<double>(samples[k + 1] - samples[k]));
    rising += samples[k + 1] > samples[k] ? 1 : 0;
  }
  EXPECT_NEAR(even / (n / 2.0) / n, 0.5, 0.03);
  EXPECT_NEAR(jump / n / n, 1.0 / 3, 0.02);
  EXPECT_NEAR(static_cast<double>(rising) / n, 0.5, 0.04);
}

// Runs of other days resume by it: it may not change.
TEST(SampleOrder, IsTheSameEverywhere) {
  const SampleOrder order(1000, true, 42);
  std::vector<std::int64_t> first;
  for (std::int64_t k = 0; k < 6; ++k) first.push_back(order.at(k));
  EXPECT_EQ(first, (std::vector<std::int64_t>{542, 494, 434, 713, 556, 819}));
}

TEST(SampleOrder, HoldsVeryLargeStreams) {
  const SampleOrder order(std::int64_t{1} << 40, true, 5);
  std::set<std::int64_t> seen;
  for (std::int64_t k = 0; k < 1000; ++k) {
    const std::int64_t sample = order.at((std::int64_t{1} << 39) + k);
    EXPECT_GE(sample, 0);
    EXPECT_LT(sample, order.samples());
    EXPECT_TRUE(seen.insert(sample).second);
  }
}

}  // namespace
}  // namespace ridge
