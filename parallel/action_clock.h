// When each action of a pipeline's step ran.
#pragma once

#include <chrono>
#include <utility>
#include <vector>

#include "core/base/cuda.h"
#include "core/base/device.h"
#include "parallel/schedule.h"

namespace ridge::parallel {

/// Seconds since the step began on this rank.
struct TimedAction {
  Action action;
  double begin = 0, end = 0;
};

/// Host time on the CPU, the compute stream's on a GPU, virtual seconds on meta.
class ActionClock {
 public:
  explicit ActionClock(Device device) : device_(device) {}
  void start();
  void begin(const Action& action);
  void end();
  /// On a GPU it waits for the last action.
  std::vector<TimedAction> read();

 private:
  double now() const;
  cuda::Event mark() const;

  Device device_;
  double start_ = 0;
  std::vector<TimedAction> actions_;
  std::vector<cuda::Event> marks_;  // on a GPU: the start, then two an action
};

}  // namespace ridge::parallel
