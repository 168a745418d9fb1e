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

TEST(Sampling, MinPIsAShareOfTheMostLikely) {
  const std::vector<float> logits = logits_of({0.15, 0.5, 0.05, 0.3});
  const std::map<double, std::set<int>> cases{
      {0, {0, 1, 2, 3}}, {0.09, {0, 1, 2, 3}}, {0.11, {0, 1, 3}}, {0.29, {0, 1, 3}},
      {0.31, {1, 3}},    {0.59, {1, 3}},       {0.61, {1}},       {1, {1}}};
  for (const auto& [min_p, ids] : cases)
    EXPECT_EQ(support(logits, {.temperature = 1, .min_p = min_p}), ids) << min_p;
  const std::vector<int> seen = counts(logits, {.temperature = 1, .seed = 2, .min_p = 0.4}, kDraws);
  EXPECT_LT(chi_square(seen, {0, 0.625, 0, 0.375}, kDraws), kLimit);
  EXPECT_EQ(support(logits, {.temperature = 2, .min_p = 0.4}), (std::set<int>{0, 1, 3}))
      << "after the temperature";
  EXPECT_EQ(support(logits, {.temperature = 1, .top_p = 0.4, .min_p = 0.1}), (std::set<int>{1}))
      << "both hold";
}

TEST(Sampling, ThePenaltyActsOnWhatWasSeen) {
  const std::vector<float> logits{2, -1, 3, 0, 1};
  const auto seen = seen_words(std::vector<std::int32_t>{2, 2, 1}, 5);
  EXPECT_EQ(sample(logits, {.repetition_penalty = 1.4}, 0, seen), 2) << "3 / 1.4 is more than 2";
  EXPECT_EQ(sample(logits, {.repetition_penalty = 1.6}, 0, seen), 0);
  EXPECT_EQ(sample(logits, {.repetition_penalty = 1.6}, 0), 2) << "nothing was seen";
  EXPECT_EQ(sample(std::vector<float>{-1, -1.5}, {.repetition_penalty = 2}, 0,
                   seen_words(std::vector<std::int32_t>{0}, 2)),
            1)
      << "-1 becomes -2";
  EXPECT_EQ(sample(std::vector<float>{-3, -1}, {.repetition_penalty = 0.25}, 0,
                   seen_words(std::vector<std::int32_t>{0}, 2)),
            0)
      << "below 1 it rewards";
  std::vector<float> far(70, 0.0f);
  far[69] = 5;
  const std::vector<int> drawn = [&] {
    std::vector<int> n(70);
    for (std::uint64_t step = 0; step < 40000; ++step)
      ++n[static_cast<std::size_t>(sample(far, {.temperature = 1, .seed = 1, .repetition_penalty = 5}, step,
                                          seen_words(std::vector<std::int32_t>{69}, 70)))];
    return n;
  }();
  const double e = std::exp(1.0);
  EXPECT_NEAR(drawn[69] / 40000.0, e / (e + 69), 4 * std::sqrt(e / (e + 69) / 40000));
}

TEST(Sampling, OptionsWithoutAMeaningAreRefused) {
  const double nan = std::nan("");
  for (const SamplingOptions& bad :
       {SamplingOptions{.temperature = -0.1}, SamplingOptions{.temperature = nan},
        SamplingOptions{.top_k = -1}, SamplingOptions{.top_p = 0}, SamplingOptions{.top_p = 1.1},
        SamplingOptions{.top_p = nan}, SamplingOptions{.min_p = -0.1}, SamplingOptions{.min_p = 1.1},
        SamplingOptions{.min_p = nan}, SamplingOptions{.repetition_penalty = 0},
        SamplingOptions{.repetition_penalty = -1}, SamplingOptions{.repetition_penalty = nan}})
    EXPECT_THROW(check_sampling(bad), UserError);
  check_sampling({.temperature = 2, .top_k = 3, .top_p = 1, .min_p = 1, .repetition_penalty = 0.5});
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
