// Sampling against the distributions that its options state.
#include "inference/sampling.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>
#include <set>
#include <vector>

#include "core/base/error.h"

namespace ridge::inference {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::vector<float> logits_of(const std::vector<double>& probabilities) {
  std::vector<float> logits;
  for (const double p : probabilities) logits.push_back(static_cast<float>(std::log(p) + 3.5));
  return logits;
}

std::vector<int> counts(const std::vector<float>& logits, const SamplingOptions& options, int draws) {
  std::vector<int> seen(logits.size());
  for (int step = 0; step < draws; ++step)
    ++seen[static_cast<std::size_t>(sample(logits, options, static_cast<std::uint64_t>(step)))];
  return seen;
}

std::set<int> support(const std::vector<float>& logits, const SamplingOptions& options) {
  std::set<int> ids;
  const std::vector<int> seen = counts(logits, options, 2000);
  for (std::size_t i = 0; i < seen.size(); ++i) {
    if (seen[i] > 0) ids.insert(static_cast<int>(i));
  }
  return ids;
}

// Pearson's statistic of counts against probabilities; ids of no probability must have no count.
double chi_square(const std::vector<int>& seen, const std::vector<double>& probabilities, int draws) {
  double sum = 0;
  for (std::size_t i = 0; i < seen.size(); ++i) {
    const double wanted = probabilities[i] * draws;
    if (wanted == 0) {
      EXPECT_EQ(seen[i], 0) << i;
    } else {
      sum += (seen[i] - wanted) * (seen[i] - wanted) / wanted;
    }
  }
  return sum;
}

TEST(Greedy, TakesTheFirstOfTheLargest) {
  EXPECT_EQ(sample(std::vector<float>{1, 5, 2, 5}, {}, 0), 1);
  EXPECT_EQ(sample(std::vector<float>{-kInfinity, -3, -kInfinity}, {}, 7), 1);
  EXPECT_EQ(sample(std::vector<float>{4}, {}, 0), 0);
}

constexpr int kDraws = 40000;
constexpr double kLimit = 27.9;  // chi-square with 9 degrees of freedom exceeds it once in 1000

TEST(Sampling, FollowsTheSoftmax) {
  const std::vector<double> p{0.3, 0.02, 0.2, 0.05, 0.1, 0.01, 0.12, 0.08, 0.07, 0.05};
  EXPECT_LT(chi_square(counts(logits_of(p), {.temperature = 1, .seed = 5}, kDraws), p, kDraws), kLimit);
  std::vector<double> squared;
  double sum = 0;
  for (const double x : p) sum += x * x;
  for (const double x : p) squared.push_back(x * x / sum);
  EXPECT_LT(chi_square(counts(logits_of(p), {.temperature = 0.5, .seed = 6}, kDraws), squared, kDraws),
            kLimit);
  EXPECT_GT(chi_square(counts(logits_of(p), {.temperature = 1, .seed = 6}, kDraws), squared, kDraws), 100);
}

TEST(Sampling, TopKIsTheSoftmaxOfTheMostLikely) {
  const std::vector<double> p{0.1, 0.4, 0.05, 0.3, 0.15};
  const std::vector<float> logits = logits_of(p);
  const std::vector<int> seen = counts(logits, {.temperature = 1, .top_k = 2, .seed = 1}, kDraws);
  EXPECT_LT(chi_square(seen, {0, 4.0 / 7, 0, 3.0 / 7, 0}, kDraws), kLimit);
  EXPECT_EQ(support(logits, {.temperature = 1, .top_k = 3}), (std::set<int>{1, 3, 4}));
  EXPECT_EQ(support(logits, {.temperature = 1, .top_k = 500}), (std::set<int>{0, 1, 2, 3, 4}));
  EXPECT_EQ(support({2, 2, 2, 2}, {.temperature = 1, .top_k = 2}), (std::set<int>{0, 1}))
      << "ties: the lower ids";
}

TEST(Sampling, TopPIsTheSmallestSetThatReachesIt) {
  const std::vector<float> logits = logits_of({0.15, 0.5, 0.05, 0.3});
  const std::map<double, std::set<int>> cases{{1e-9, {1}},          {0.49, {1}},       {0.51, {1, 3}},
                                              {0.79, {1, 3}},       {0.81, {0, 1, 3}}, {0.94, {0, 1, 3}},
                                              {0.96, {0, 1, 2, 3}}, {1, {0, 1, 2, 3}}};
  for (const auto& [top_p, ids] : cases)
    EXPECT_EQ(support(logits, {.temperature = 1, .top_p = top_p}), ids) << top_p;
  const std::vector<int> seen = counts(logits, {.temperature = 1, .top_p = 0.7, .seed = 2}, kDraws);
  EXPECT_LT(chi_square(seen, {0, 0.625, 0, 0.375}, kDraws), kLimit);
  // top_k comes first, and its rest is the whole that top_p is a share of.
  EXPECT_EQ(support(logits, {.temperature = 1, .top_k = 2, .top_p = 0.62}), (std::set<int>{1}));
  EXPECT_EQ(support(logits, {.temperature = 1, .top_k = 2, .top_p = 0.63}), (std::set<int>{1, 3}));
}

TEST(Sampling, SeedAndStepDecide) {
  const std::vector<float> logits(50, 0.0f);
  std::set<int> by_step, by_seed;
  for (std::uint64_t i = 0; i < 200; ++i) {
    const SamplingOptions options{.temperature = 1, .seed = i};
    EXPECT_EQ(sample(logits, options, 3), sample(logits, options, 3));
    by_seed.insert(sample(logits, options, 0));
    by_step.insert(sample(logits, {.temperature = 1, .seed = 11}, i));
  }
  EXPECT_GT(by_seed.size(), 40u);
  EXPECT_GT(by_step.size(), 40u);
}

TEST(Sampling, TheSizeOfLogitsDoesNotMatter) {
  EXPECT_EQ(support({3e38f, -3e38f, 2e38f}, {.temperature = 1}), (std::set<int>{0}));
  EXPECT_EQ(support({-1e30f, -1e30f, -kInfinity}, {.temperature = 1}), (std::set<int>{0, 1}));
  EXPECT_EQ(support({1, 2, 3}, {.temperature = 1e-300}), (std::set<int>{2}));
  EXPECT_EQ(support({1, 2, 3}, {.temperature = std::numeric_limits<double>::infinity()}),
            (std::set<int>{0, 1, 2}));
}

TEST(Sampling, WhatIsNoNumberIsRefused) {
  for (const float bad : {std::nanf(""), kInfinity}) {
    for (const double temperature : {0.0, 1.0}) {
      try {
        sample(std::vector<float>{1, 2, bad, 3}, {.temperature = temperature}, 4);
        FAIL() << bad;
      } catch (const UserError& error) {
        EXPECT_NE(std::string(error.what()).find("new token 4: the model gives id 2 the logit"),
                  std::string::npos)
            << error.what();
      }
    }
  }
}

}  // namespace
}  // namespace ridge::inference
