#include "parallel/action_clock.h"

#include "core/base/stream.h"

namespace ridge::parallel {

double ActionClock::now() const {
  if (device_ == Device::meta) return current_stream(Device::meta).virtual_seconds;
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

cuda::Event ActionClock::mark() const {
  cuda::Event event(true);
  event.record(current_stream(Device::cuda));
  return event;
}

void ActionClock::start() {
  actions_.clear();
  marks_.clear();
  if (device_ == Device::cuda) {
    marks_.push_back(mark());
  } else {
    start_ = now();
  }
}

void ActionClock::begin(const Action& action) {
  actions_.push_back({action, 0, 0});
  if (device_ == Device::cuda) {
    marks_.push_back(mark());
  } else {
    actions_.back().begin = now() - start_;
  }
}

void ActionClock::end() {
  if (device_ == Device::cuda) {
    marks_.push_back(mark());
  } else {
    actions_.back().end = now() - start_;
  }
}

std::vector<TimedAction> ActionClock::read() {
  if (device_ == Device::cuda) {
    marks_.back().synchronize();
    const auto seconds = [&](std::size_t i) { return marks_[i].nanoseconds_since(marks_.front()) * 1e-9; };
    for (std::size_t i = 0; i < actions_.size(); ++i) {
      actions_[i].begin = seconds(2 * i + 1);
      actions_[i].end = seconds(2 * i + 2);
    }
  }
  return actions_;
}

}  // namespace ridge::parallel
