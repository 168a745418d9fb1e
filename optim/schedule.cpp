#include "optim/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "core/base/error.h"

namespace ridge {
namespace {

// Share of a decay that is done: 0 at its first step, 1 at `end` and after.
double progress(std::int64_t step, std::int64_t begin, std::int64_t end) {
  if (step <= begin) return 0;
  if (step >= end) return 1;
  return static_cast<double>(step - begin) / static_cast<double>(end - begin);
}

// Share of the height between the floor and the peak that is left.
double height(const ScheduleOptions& o, std::int64_t step, std::int64_t total) {
  switch (o.kind) {
    case ScheduleKind::constant:
      return 1;
    case ScheduleKind::linear:
      return 1 - progress(step, o.warmup_steps, total);
    case ScheduleKind::cosine:
      return 0.5 * (1 + std::cos(std::numbers::pi * progress(step, o.warmup_steps, total)));
    case ScheduleKind::wsd:
      return 1 - progress(step, std::max(o.warmup_steps, total - o.decay_steps), total);
  }
  fail("unknown schedule");
}

}  // namespace

ScheduleKind parse_schedule(std::string_view name) {
  if (name == "constant") return ScheduleKind::constant;
  if (name == "linear") return ScheduleKind::linear;
  if (name == "cosine") return ScheduleKind::cosine;
  if (name == "wsd") return ScheduleKind::wsd;
  fail_user("unknown schedule '{}': use one of constant, linear, cosine, wsd", name);
}

double learning_rate(const ScheduleOptions& o, std::int64_t step, std::int64_t total_steps) {
  check(step >= 0 && total_steps >= 0, "steps count from 0");
  if (step < o.warmup_steps)
    return o.lr * static_cast<double>(step + 1) / static_cast<double>(o.warmup_steps);
  return o.lr * (o.min_lr_ratio + (1 - o.min_lr_ratio) * height(o, step, total_steps));
}

}  // namespace ridge
