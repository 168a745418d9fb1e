// Times of pipeline stages: what is measured, what a schedule makes of it, and the forecast of a step.
#include "launch/pipeline_times.h"

#include <gtest/gtest.h>

#include <mutex>

#include "core/models/config.h"
#include "launch/forecast.h"
#include "launch/run_config.h"
#include "launch/run_config.pb.h"

namespace ridge {
namespace {

using parallel::Act;
using parallel::Schedule;
using parallel::TimedAction;

TEST(StageMeter, MeansOverMicroBatchesAndRanks) {
  parallel::run_ranks(2, [](parallel::Communicator& pp) {
    StageMeter meter(PipelineShape{Schedule::zb_h1, 2, 1, 2});
    if (pp.rank() == 0)
      meter.add({{{Act::forward, 0, 0}, 1, 2},
                 {{Act::forward, 0, 1}, 2, 5},
                 {{Act::backward, 0, 0}, 5, 9},
                 {{Act::backward, 0, 1}, 10, 16}});
    if (pp.rank() == 1)
      meter.add({{{Act::forward, 1, 0}, 0, 7},
                 {{Act::backward_input, 1, 0}, 7, 8},
                 {{Act::backward_weight, 1, 0}, 8, 11}});
    meter.share(pp);
    const auto means = meter.means();
    ASSERT_EQ(means.size(), 2u);
    EXPECT_DOUBLE_EQ(means[0].forward, 2);
    EXPECT_DOUBLE_EQ(means[0].backward_input + means[0].backward_weight, 5);
    EXPECT_DOUBLE_EQ(means[1].forward, 7);
    EXPECT_DOUBLE_EQ(means[1].backward_input, 1);
    EXPECT_DOUBLE_EQ(means[1].backward_weight, 3);
  });
}

TEST(PipelineShape, EvenStagesOf1F1BHaveTheClosedBubble) {
  for (const int ranks : {2, 3, 4}) {
    for (const int micro : {1, 3, 8}) {
      const auto price =
          PipelineShape{Schedule::one_f_one_b, ranks, 1, micro}.price({std::vector<parallel::StageTimes>(1)});
      EXPECT_NEAR(price.bubble_share, (ranks - 1.0) / (micro + ranks - 1.0), 1e-12);
    }
  }
}

// Stages of 1 + 2 seconds: the pipeline lasts (micro + ranks - 1) 3 seconds, and a rank's step more.
TEST(PipelineForecast, AddsWhatRanksDoBesideThePipeline) {
  const int micro = 5;
  PipelineForecast forecast({Schedule::one_f_one_b, 2, 1, micro});
  for (const int stage : {0, 1}) {
    std::vector<TimedAction> timeline;
    double now = 0;
    for (int m = 0; m < micro; ++m) {
      timeline.push_back({{Act::forward, stage, m}, now, now + 1});
      timeline.push_back({{Act::backward, stage, m}, now + 1, now + 3});
      now += 3;
    }
    forecast.add(timeline, now + (stage == 0 ? 0.25 : 0.75));
  }
  EXPECT_NEAR(forecast.step_seconds({1e30, 0}, 1), (micro + 1) * 3.0 + 0.75, 1e-9);
  // Each message of half a second: at least the first on its way out and the last on its way back are waited
  // for.
  EXPECT_GE(forecast.step_seconds({10, 0}, 5), (micro + 1) * 3.0 + 0.75 + 1.0 - 1e-9);
}

double forecast_seconds(int ranks, const std::string& layout, int micro_batches,
                        const parallel::SimulatedNetwork& network = {1e30, 0}) {
  const std::vector<std::string> overrides{
      "model.path=unused",   "data.train=[unused]", "data.sequence_length=64",
      "train.micro_batch=1", "parallel." + layout,  "train.global_batch=" + std::to_string(micro_batches)};
  config::RunConfig run = parse_run_config("{output: unused, train: {precision: f32}}", "test", overrides);
  resolve(run, ranks);
  const auto model = models::ModelConfig::load(std::string(RIDGE_SOURCE_DIR) + "/tests/data/models/llama3");
  const Ceilings roof{1e11, 1e11, 1e11};
  const std::int64_t micro = micro_batches / data_parallel_degree(run);
  return forecast_training(model, run, micro, Device::cpu, roof, 0, network).step_seconds;
}

// One micro-batch goes through all stages one after another; many keep both ranks at work.
TEST(Forecast, CountsThePipelinesBubble) {
  const double one = forecast_seconds(1, "pp=1", 1), two = forecast_seconds(2, "pp=2", 1);
  EXPECT_LE(two, 1.02 * one);
  EXPECT_GE(two, 0.75 * one);  // optimizer steps go side by side
  const double many = forecast_seconds(2, "pp=2", 32) / forecast_seconds(1, "pp=1", 32);
  EXPECT_GE(many, 0.5);
  EXPECT_LE(many, 0.7);
}

// What the step before sent last arrives where it would, not a step late.
TEST(Forecast, AStepFollowsAnother) {
  const parallel::SimulatedNetwork network{1e11, 0};
  const double alone = forecast_seconds(1, "shard=1", 1);
  for (const char* layout : {"stage=1", "stage=2", "stage=3"})
    EXPECT_LE(forecast_seconds(2, layout, 2, network), 1.5 * alone) << layout;
}

}  // namespace
}  // namespace ridge
