// Records launches, and says how far each op is from the roof.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/base/stream.h"

namespace ridge {

struct Work;

/// One launch: times in ns since the profiler began.
struct LaunchRecord {
  const char* op;  // a string literal of the launch site
  double flops;
  double bytes;
  std::int64_t begin_ns;
  std::int64_t end_ns;
};

/// All launches of one op.
struct OpSummary {
  std::string op;
  std::int64_t calls = 0;
  double seconds = 0;
  double flops = 0;
  double bytes = 0;
};

/// Collects the launches of the streams that point at it. One thread at a time. On a GPU a launch is timed by
/// device events, which are read when its stream is next waited for.
class Profiler {
 public:
  Profiler();
  ~Profiler();
  Profiler(const Profiler&) = delete;
  Profiler& operator=(const Profiler&) = delete;

  void record(const LaunchRecord& record) { records_.push_back(record); }
  std::int64_t now_ns() const;
  /// Waits for launches that are still under way on a GPU.
  const std::vector<LaunchRecord>& records() const;
  void clear();
  /// By op, the longest first.
  std::vector<OpSummary> summary() const;

  /// A launch on a GPU begins or ends on `stream`: host calls, device times.
  void device_begin(const Stream& stream, const LaunchRecord& record);
  void device_end(const Stream& stream);

 private:
  class DeviceTimes;
  mutable std::vector<LaunchRecord> records_;
  std::int64_t origin_ns_ = 0;
  std::unique_ptr<DeviceTimes> device_;
};

/// Points a stream at a profiler for a scope.
class ProfilerScope {
 public:
  ProfilerScope(Stream& stream, Profiler* profiler) : stream_(stream), before_(stream.profiler) {
    stream.profiler = profiler;
  }
  ~ProfilerScope() { stream_.profiler = before_; }
  ProfilerScope(const ProfilerScope&) = delete;
  ProfilerScope& operator=(const ProfilerScope&) = delete;

 private:
  Stream& stream_;
  Profiler* before_;
};

/// Seconds that the work needs at the least under `roof`: the slower of arithmetic and memory.
double attainable_seconds(const Ceilings& roof, double flops, double bytes);

/// The table by op: calls, time, share, rates, intensity, achieved against attainable, which bound.
std::string roofline_table(const std::vector<OpSummary>& ops, const Ceilings& roof, double wall_seconds);

namespace detail {

void launch_on_meta(Stream& stream, const char* op, const Work& work);

/// Times a launch where the stream has a profiler.
class LaunchTimer {
 public:
  LaunchTimer(Stream& stream, const char* op, const Work& work) : stream_(stream) {
    if (stream.profiler != nullptr) begin(op, work);
  }
  ~LaunchTimer() {
    if (stream_.profiler != nullptr) end();
  }
  LaunchTimer(const LaunchTimer&) = delete;
  LaunchTimer& operator=(const LaunchTimer&) = delete;

 private:
  void begin(const char* op, const Work& work);
  void end() noexcept;

  Stream& stream_;
  LaunchRecord record_{};
};

}  // namespace detail
}  // namespace ridge
