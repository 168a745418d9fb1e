// Watches collectives that run on a device: a rank that never comes must not let the others wait for ever.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "core/base/dtype.h"

namespace ridge::parallel {

/// A collective under way: what messages say of it.
struct Flight {
  const char* op;
  std::size_t count;
  DType dtype;
  std::int64_t sequence;  // from 1
  std::chrono::steady_clock::time_point begin;
  std::function<bool()> done;  // empty until all of it is queued

  /// Such as "all_reduce #17 of 1048576 f32".
  std::string describe() const;
};

/// A thread that looks at the collectives in the order in which they were begun. It gives up once, and then
/// looks no more: when one is older than `timeout`, when `probe` or a Flight's `done` says what went wrong.
class Watchdog {
 public:
  using Duration = std::chrono::milliseconds;
  struct Options {
    Duration timeout;      // how long one may take, from begin() on
    Duration poll{100};    // between two looks
    Duration grace{5000};  // for the caller to see an error of `done` himself, as he does of his own device
  };
  /// `probe` says what went wrong beside the collectives; empty: nothing. `give_up` gets the reason, one
  /// line. Both run on the thread.
  Watchdog(Options options, std::function<std::string()> probe, std::function<void(std::string)> give_up);
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

  /// One is about to be queued, which may take as long as another rank takes to come.
  std::shared_ptr<Flight> begin(const char* op, std::size_t count, DType dtype);
  /// It is queued; `done` may throw.
  void queued(Flight& flight, std::function<bool()> done);
  /// It could not be queued, and the caller knows.
  void forget(const Flight& flight);
  /// How many are under way, as of the last look.
  std::size_t under_way() const;

 private:
  void run();
  std::string look();
  std::string look_at_flights();
  bool stopped_within(Duration duration);

  const Options options_;
  const std::function<std::string()> probe_;
  const std::function<void(std::string)> give_up_;
  mutable std::mutex mutex_;
  std::condition_variable stop_;
  bool stopping_ = false;
  std::deque<std::shared_ptr<Flight>> flights_;
  std::int64_t sequence_ = 0;
  std::thread thread_;
};

}  // namespace ridge::parallel
