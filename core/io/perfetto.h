// Perfetto traces: https://perfetto.dev/docs/reference/trace-packet-proto; opens in ui.perfetto.dev.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <variant>

namespace ridge {

/// A number shown with a slice.
struct TraceAnnotation {
  std::string_view name;
  std::variant<std::int64_t, double> value;
};

/// Writes a trace as a stream: what was flushed stays readable whatever happens later. Times are in
/// nanoseconds of one clock. Names go into the file once. Not for several threads at once.
class PerfettoWriter {
 public:
  /// Where slices or counter values go.
  enum class Track : std::uint64_t {};

  /// UserError when the file cannot be created.
  explicit PerfettoWriter(const std::string& path);
  PerfettoWriter(PerfettoWriter&&) noexcept;
  ~PerfettoWriter();

  Track process(std::int32_t pid, std::string_view name);
  /// A thread or a stream of a process; slices of one thread must nest.
  Track thread(std::int32_t pid, std::int32_t tid, std::string_view name);
  /// A line of values over time, below a process or thread.
  Track counter(Track parent, std::string_view name);

  void begin(Track track, std::string_view name, std::uint64_t time_ns,
             std::span<const TraceAnnotation> annotations = {});
  /// Ends the slice begun last on the track.
  void end(Track track, std::uint64_t time_ns);
  void instant(Track track, std::string_view name, std::uint64_t time_ns,
               std::span<const TraceAnnotation> annotations = {});
  void value(Track counter, std::uint64_t time_ns, double value);

  /// UserError when the disk is full.
  void flush();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace ridge
