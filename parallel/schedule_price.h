// What a pipeline schedule takes: its lists, run on a clock.
#pragma once

#include <vector>

#include "parallel/schedule.h"

namespace ridge::parallel {

/// Seconds of one stage on one micro-batch.
struct StageTimes {
  double forward = 1;
  double backward_input = 1;
  double backward_weight = 1;  // Act::backward takes both
};

struct PipelineTimes {
  std::vector<StageTimes> stages;  // one a stage, or one for all
  double latency = 0;              // seconds from a message's last byte sent to its arrival
  double transfer = 0;  // seconds that a message keeps its link; links go from a stage to a neighbour
};

struct PipelinePrice {
  double makespan = 0;       // seconds from the first action to the last
  std::vector<double> busy;  // seconds of compute, by rank
  double bubble_share = 0;   // of all ranks' time: 1 - sum of busy / (ranks makespan)
};

/// Ranks work their lists in order; sends go beside compute, receives wait until the message has come. An
/// Error as run_order's.
PipelinePrice price(const std::vector<std::vector<Action>>& lists, const PipelineTimes& times,
                    int window = kLinkWindow);

}  // namespace ridge::parallel
