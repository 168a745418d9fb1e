#include "parallel/watchdog.h"

#include <fmt/core.h>

#include <exception>

namespace ridge::parallel {

std::string Flight::describe() const {
  return fmt::format("{} #{} of {} {}", op, sequence, count, name_of(dtype));
}

Watchdog::Watchdog(Options options, std::function<std::string()> probe,
                   std::function<void(std::string)> give_up)
    : options_(options), probe_(std::move(probe)), give_up_(std::move(give_up)), thread_([this] { run(); }) {}

Watchdog::~Watchdog() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  stop_.notify_all();
  thread_.join();
}

std::shared_ptr<Flight> Watchdog::begin(const char* op, std::size_t count, DType dtype) {
  const std::lock_guard lock(mutex_);
  flights_.push_back(std::make_shared<Flight>(
      Flight{op, count, dtype, ++sequence_, std::chrono::steady_clock::now(), nullptr}));
  return flights_.back();
}

void Watchdog::queued(Flight& flight, std::function<bool()> done) {
  const std::lock_guard lock(mutex_);
  flight.done = std::move(done);
}

void Watchdog::forget(const Flight& flight) {
  const std::lock_guard lock(mutex_);
  std::erase_if(flights_, [&](const std::shared_ptr<Flight>& f) { return f.get() == &flight; });
}

std::size_t Watchdog::under_way() const {
  const std::lock_guard lock(mutex_);
  return flights_.size();
}

void Watchdog::run() {
  while (!stopped_within(options_.poll)) {
    std::string reason;
    try {
      reason = look();
    } catch (const std::exception& error) {
      if (stopped_within(options_.grace)) return;
      reason = error.what();
    }
    if (reason.empty()) continue;
    give_up_(std::move(reason));
    return;
  }
}

bool Watchdog::stopped_within(Duration duration) {
  std::unique_lock lock(mutex_);
  return stop_.wait_for(lock, duration, [this] { return stopping_; });
}

std::string Watchdog::look() {
  std::string reason = look_at_flights();
  const std::string wrong = probe_();
  if (wrong.empty()) return reason;
  const std::lock_guard lock(mutex_);
  return flights_.empty() ? wrong : fmt::format("{}: {}", flights_.front()->describe(), wrong);
}

// They end in the order in which they began.
std::string Watchdog::look_at_flights() {
  for (;;) {
    std::shared_ptr<Flight> oldest;
    std::function<bool()> done;
    {
      const std::lock_guard lock(mutex_);
      if (flights_.empty()) return {};
      oldest = flights_.front();
      done = oldest->done;
    }
    if (done && done()) {
      forget(*oldest);
      continue;
    }
    if (std::chrono::steady_clock::now() - oldest->begin <= options_.timeout) return {};
    return fmt::format("{} is not done after {:g} s: another rank did not come to it, or hangs",
                       oldest->describe(), std::chrono::duration<double>(options_.timeout).count());
  }
}

}  // namespace ridge::parallel
