// Learning-rate schedules: pure functions of the step.
#pragma once

#include <cstdint>
#include <string_view>

namespace ridge {

enum class ScheduleKind {
  constant,
  linear,
  cosine,  // half a period, Loshchilov & Hutter 2017 without restarts
  wsd      // warmup, stable, decay (linear), Hu et al. 2024
};

/// The schedule called "constant", "linear", "cosine" or "wsd"; a UserError names them.
ScheduleKind parse_schedule(std::string_view name);

struct ScheduleOptions {
  ScheduleKind kind = ScheduleKind::constant;
  double lr = 1e-3;               // peak
  std::int64_t warmup_steps = 0;  // first steps: lr * (step + 1) / warmup_steps
  std::int64_t decay_steps = 0;   // wsd: last steps
  double min_lr_ratio = 0;        // of lr, at the end of the decay
};

/// The learning rate of `step`, which counts from 0 to total_steps - 1. The last warmup step has the full lr,
/// as has the first step after it. A decay begins there (wsd: at total_steps - decay_steps) and would reach
/// lr * min_lr_ratio at step total_steps, the first that is not taken; later steps stay at it.
double learning_rate(const ScheduleOptions& options, std::int64_t step, std::int64_t total_steps);

}  // namespace ridge
