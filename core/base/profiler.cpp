#include "core/base/profiler.h"

#include <algorithm>
#include <chrono>
#include <map>

#include "core/base/cuda.h"
#include "core/base/launch.h"

namespace ridge {
namespace {

std::int64_t clock_ns() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::nanoseconds>(now).count();
}

std::string scaled(double value) {
  constexpr const char* kUnits[] = {"", "k", "M", "G", "T", "P"};
  int unit = 0;
  while (value >= 1000 && unit < 5) {
    value /= 1000;
    ++unit;
  }
  return fmt::format("{:.{}f}{}", value, value < 100 ? 1 : 0, kUnits[unit]);
}

std::string table_row(const OpSummary& op, const Ceilings& roof, double wall_seconds) {
  const double attainable = attainable_seconds(roof, op.flops, op.bytes);
  const bool compute = op.flops / roof.flops_per_s > op.bytes / roof.read_bytes_per_s;
  const double intensity = op.bytes > 0 ? op.flops / op.bytes : 0;
  return fmt::format("{:<24} {:>7} {:>10.2f} {:>6.1f}% {:>9} {:>9} {:>9.2f} {:>9.1f}% {:>8}\n", op.op,
                     op.calls, op.seconds * 1e3, 100 * op.seconds / wall_seconds,
                     scaled(op.flops / op.seconds), scaled(op.bytes / op.seconds), intensity,
                     100 * attainable / op.seconds, compute ? "compute" : "memory");
}

}  // namespace

// Pairs of events around launches, on one stream; a pair is used again once it has been read.
class Profiler::DeviceTimes {
 public:
  explicit DeviceTimes(const Stream& stream) : stream_(stream), origin_(true) { origin_.record(stream); }

  void begin(const LaunchRecord& record) {
    if (used_ == spans_.size()) spans_.push_back(std::make_unique<Span>());
    spans_[used_]->record = record;
    spans_[used_]->from.record(stream_);
  }
  void end() { spans_[used_++]->to.record(stream_); }

  void read(std::vector<LaunchRecord>& records) {
    if (used_ == 0) return;
    spans_[used_ - 1]->to.synchronize();
    for (std::size_t i = 0; i < used_; ++i) {
      LaunchRecord record = spans_[i]->record;
      record.begin_ns = static_cast<std::int64_t>(spans_[i]->from.nanoseconds_since(origin_));
      record.end_ns = static_cast<std::int64_t>(spans_[i]->to.nanoseconds_since(origin_));
      records.push_back(record);
    }
    used_ = 0;
  }

 private:
  struct Span {
    LaunchRecord record{};
    cuda::Event from{true}, to{true};
  };
  const Stream& stream_;
  cuda::Event origin_;
  std::vector<std::unique_ptr<Span>> spans_;
  std::size_t used_ = 0;
};

Profiler::Profiler() : origin_ns_(clock_ns()) { records_.reserve(1 << 14); }
Profiler::~Profiler() = default;

const std::vector<LaunchRecord>& Profiler::records() const {
  if (device_ != nullptr) device_->read(records_);
  return records_;
}

void Profiler::clear() {
  records();
  records_.clear();
}

void Profiler::device_begin(const Stream& stream, const LaunchRecord& record) {
  if (device_ == nullptr) device_ = std::make_unique<DeviceTimes>(stream);
  device_->begin(record);
}

void Profiler::device_end(const Stream&) { device_->end(); }

std::int64_t Profiler::now_ns() const { return clock_ns() - origin_ns_; }

std::vector<OpSummary> Profiler::summary() const {
  std::map<std::string, OpSummary> by_op;
  for (const LaunchRecord& r : records()) {
    OpSummary& s = by_op[r.op];
    s.op = r.op;
    s.calls += 1;
    s.seconds += static_cast<double>(r.end_ns - r.begin_ns) * 1e-9;
    s.flops += r.flops;
    s.bytes += r.bytes;
  }
  std::vector<OpSummary> rows;
  for (auto& [name, s] : by_op) rows.push_back(std::move(s));
  std::stable_sort(rows.begin(), rows.end(), [](auto& a, auto& b) { return a.seconds > b.seconds; });
  return rows;
}

double attainable_seconds(const Ceilings& roof, double flops, double bytes) {
  const double compute = roof.flops_per_s > 0 ? flops / roof.flops_per_s : 0;
  const double memory = roof.read_bytes_per_s > 0 ? bytes / roof.read_bytes_per_s : 0;
  return std::max(compute, memory);
}

std::string roofline_table(const std::vector<OpSummary>& ops, const Ceilings& roof, double wall_seconds) {
  std::string table = fmt::format("{:<24} {:>7} {:>10} {:>7} {:>9} {:>9} {:>9} {:>10} {:>8}\n", "op", "calls",
                                  "time ms", "share", "FLOP/s", "byte/s", "FLOP/byte", "of limit", "bound");
  OpSummary total{"all ops", 0, 0, 0, 0};
  double attainable = 0;
  for (const OpSummary& op : ops) {
    table += table_row(op, roof, wall_seconds);
    total.calls += op.calls;
    total.seconds += op.seconds;
    total.flops += op.flops;
    total.bytes += op.bytes;
    attainable += attainable_seconds(roof, op.flops, op.bytes);
  }
  if (ops.empty()) return table + "no ops were launched\n";
  table += table_row(total, roof, wall_seconds);
  table += fmt::format(
      "wall {:.2f} ms; ops at their limits {:.2f} ms; outside ops {:.2f} ms\n"
      "(above 100 % of the memory limit: the data were in a cache)\n",
      wall_seconds * 1e3, attainable * 1e3, (wall_seconds - total.seconds) * 1e3);
  return table;
}

namespace detail {

void launch_on_meta(Stream& stream, const char* op, const Work& work) {
  const double seconds = attainable_seconds(stream.meta_ceilings, work.flops, work.bytes);
  if (stream.profiler != nullptr) {
    const auto begin = static_cast<std::int64_t>(stream.virtual_seconds * 1e9);
    const auto end = static_cast<std::int64_t>((stream.virtual_seconds + seconds) * 1e9);
    stream.profiler->record({op, work.flops, work.bytes, begin, end});
  }
  stream.virtual_seconds += seconds;
}

void LaunchTimer::begin(const char* op, const Work& work) {
  record_ = {op, work.flops, work.bytes, stream_.profiler->now_ns(), 0};
  if (stream_.device() != Device::cuda) return;
  cuda::range_push(op);
  stream_.profiler->device_begin(stream_, record_);
}

void LaunchTimer::end() noexcept try {
  if (stream_.device() == Device::cuda) {
    cuda::range_pop();
    stream_.profiler->device_end(stream_);
    return;
  }
  record_.end_ns = stream_.profiler->now_ns();
  stream_.profiler->record(record_);
} catch (const Error&) {  // the stream is broken: the next wait for it says why
}

void throw_no_cuda(const char* op) { fail("{}: there is no CUDA body for this op in this build", op); }

}  // namespace detail
}  // namespace ridge
