// Schedules against closed forms and at their corners.
#include "optim/schedule.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "core/base/error.h"

namespace ridge {
namespace {

constexpr ScheduleKind kAll[] = {ScheduleKind::constant, ScheduleKind::linear, ScheduleKind::cosine,
                                 ScheduleKind::wsd};

ScheduleOptions options(ScheduleKind kind, std::int64_t warmup, double min_ratio, std::int64_t decay = 0) {
  return {kind, 3e-4, warmup, decay, min_ratio};
}

TEST(Schedule, WarmupIsOneLineForEveryKind) {
  for (const ScheduleKind kind : kAll) {
    const ScheduleOptions o = options(kind, 8, 0.1, 20);
    for (int step = 0; step < 8; ++step)
      EXPECT_DOUBLE_EQ(learning_rate(o, step, 100), 3e-4 * (step + 1) / 8.0);
    EXPECT_DOUBLE_EQ(learning_rate(o, 7, 100), 3e-4);
    EXPECT_DOUBLE_EQ(learning_rate(o, 8, 100), 3e-4);
  }
}

TEST(Schedule, ConstantStays) {
  const ScheduleOptions o = options(ScheduleKind::constant, 0, 0.1);
  for (const int step : {0, 1, 99, 100, 5000}) EXPECT_DOUBLE_EQ(learning_rate(o, step, 100), 3e-4);
}

TEST(Schedule, LinearIsALine) {
  const ScheduleOptions o = options(ScheduleKind::linear, 10, 0.0);
  // transformers' get_linear_schedule_with_warmup after its warmup: (total - step) / (total - warmup).
  for (int step = 10; step <= 100; ++step) {
    EXPECT_NEAR(learning_rate(o, step, 100), 3e-4 * (100 - step) / 90.0, 1e-18);
  }
  EXPECT_EQ(learning_rate(o, 250, 100), 0);
}

TEST(Schedule, CosineMeetsItsCorners) {
  const ScheduleOptions o = options(ScheduleKind::cosine, 20, 0.1);
  EXPECT_DOUBLE_EQ(learning_rate(o, 20, 100), 3e-4);
  EXPECT_DOUBLE_EQ(learning_rate(o, 60, 100), 3e-4 * 0.55);
  EXPECT_NEAR(learning_rate(o, 40, 100), 3e-4 * (0.1 + 0.9 * (0.5 + std::sqrt(2.0) / 4)), 1e-18);
  EXPECT_DOUBLE_EQ(learning_rate(o, 100, 100), 3e-5);
  EXPECT_DOUBLE_EQ(learning_rate(o, 101, 100), 3e-5);
  for (int step = 20; step < 100; ++step)
    EXPECT_GT(learning_rate(o, step, 100), learning_rate(o, step + 1, 100));
}

TEST(Schedule, WsdIsStableThenFalls) {
  const ScheduleOptions o = options(ScheduleKind::wsd, 5, 0.2, 10);
  for (int step = 5; step <= 90; ++step) EXPECT_DOUBLE_EQ(learning_rate(o, step, 100), 3e-4);
  for (int step = 90; step <= 100; ++step) {
    EXPECT_NEAR(learning_rate(o, step, 100), 3e-4 * (1 - 0.8 * (step - 90) / 10.0), 1e-18);
  }
  EXPECT_DOUBLE_EQ(learning_rate(o, 100, 100), 6e-5);
}

TEST(Schedule, ShortRunsStayDefined) {
  for (const ScheduleKind kind : kAll) {
    const ScheduleOptions o = options(kind, 4, 0.5, 9);
    for (const int total : {0, 1, 3, 4, 5}) {
      for (int step = 0; step < 8; ++step) {
        const double lr = learning_rate(o, step, total);
        EXPECT_TRUE(lr > 0 && lr <= 3e-4) << total << " " << step << " " << lr;
      }
    }
  }
}

TEST(Schedule, NamesAreParsed) {
  EXPECT_EQ(parse_schedule("constant"), ScheduleKind::constant);
  EXPECT_EQ(parse_schedule("linear"), ScheduleKind::linear);
  EXPECT_EQ(parse_schedule("cosine"), ScheduleKind::cosine);
  EXPECT_EQ(parse_schedule("wsd"), ScheduleKind::wsd);
  try {
    parse_schedule("cosin");
    FAIL();
  } catch (const UserError& e) {
    EXPECT_EQ(std::string(e.what()), "unknown schedule 'cosin': use one of constant, linear, cosine, wsd");
  }
}

}  // namespace
}  // namespace ridge
