#include "launch/pipeline_times.h"

#include <algorithm>
#include <span>

#include "core/base/error.h"
#include "core/base/stream.h"
#include "launch/workloads.h"

namespace ridge {

using parallel::Act;

parallel::PipelinePrice PipelineShape::price(const parallel::PipelineTimes& times) const {
  return parallel::price(parallel::schedules(kind, ranks, chunks, micro_batches), times);
}

PipelineShape pipeline_shape(const ParallelOptions& options, const parallel::Mesh& mesh,
                             std::int64_t micro_batches) {
  return {options.schedule, mesh.size(parallel::Axis::pp),
          parallel::chunks_of(options.schedule, options.stages_per_rank), static_cast<int>(micro_batches)};
}

double message_bytes(const ParallelOptions& options, const parallel::Mesh& mesh, std::int64_t tokens,
                     std::int64_t hidden_size) {
  const int cut =
      mesh.size(parallel::Axis::cp) * (options.sequence_parallel ? mesh.size(parallel::Axis::tp) : 1);
  return static_cast<double>(tokens / cut * hidden_size) * static_cast<double>(size_of(options.dtype));
}

void StageMeter::add(const std::vector<parallel::TimedAction>& timeline) {
  for (const parallel::TimedAction& timed : timeline) {
    Sums& sums = sums_.at(static_cast<std::size_t>(timed.action.stage));
    const auto act = static_cast<std::size_t>(timed.action.act);
    check(act < kActs, "a timeline of forwards and backwards");
    sums.seconds[act] += timed.end - timed.begin;
    sums.count[act] += 1;
  }
}

void StageMeter::share(parallel::Communicator& pp) {
  std::vector<double> flat;
  for (const Sums& sums : sums_) {
    flat.insert(flat.end(), sums.seconds.begin(), sums.seconds.end());
    flat.insert(flat.end(), sums.count.begin(), sums.count.end());
  }
  pp.all_reduce(std::span<double>(flat), parallel::Reduce::sum);
  auto from = flat.begin();
  const auto take = [&](std::array<double, kActs>& values) {
    std::copy_n(from, kActs, values.begin());
    from += kActs;
  };
  for (Sums& sums : sums_) {
    take(sums.seconds);
    take(sums.count);
  }
}

std::vector<parallel::StageTimes> StageMeter::means() const {
  std::vector<parallel::StageTimes> all;
  for (const Sums& sums : sums_) {
    const auto mean = [&](Act act) {
      const auto a = static_cast<std::size_t>(act);
      return sums.count[a] > 0 ? sums.seconds[a] / sums.count[a] : 0;
    };
    parallel::StageTimes times{mean(Act::forward), mean(Act::backward_input), mean(Act::backward_weight)};
    // A schedule with whole backwards alone: which half takes what makes no difference to it.
    if (sums.count[static_cast<std::size_t>(Act::backward_input)] == 0)
      times.backward_input = mean(Act::backward);
    all.push_back(times);
  }
  return all;
}

BubbleShares measure_bubble(TrainingWorkload& work, const PipelineShape& shape, int steps) {
  parallel::Pipeline* const pipeline = work.model().pipeline();
  if (pipeline == nullptr) return {};
  StageMeter meter(shape);
  std::vector<double> shares;
  pipeline->measure(true);
  for (int step = 0; step < steps; ++step) {
    work.step();
    shares.push_back(pipeline->bubble_share());
    meter.add(pipeline->timeline());
  }
  pipeline->measure(false);
  meter.share(work.model().groups().along(parallel::Axis::pp));
  return {median(shares), shape.price({meter.means()}).bubble_share,
          shape.price({std::vector<parallel::StageTimes>(1)}).bubble_share};
}

SimulatedStep simulate_step(const parallel::Groups& groups, const std::function<void()>& step) {
  const auto exposed = [&] {
    double sum = 0;
    for (int axis = 0; axis < parallel::kAxes; ++axis)
      sum += groups.time(static_cast<parallel::Axis>(axis)).exposed_seconds;
    return sum;
  };
  const Stream& stream = current_stream(Device::meta);
  const double begin = stream.virtual_seconds, exposed_before = exposed();
  step();
  return {stream.virtual_seconds - begin, exposed() - exposed_before};
}

void PipelineForecast::add(const std::vector<parallel::TimedAction>& timeline, double step_seconds) {
  meter_.add(timeline);
  double last = 0;
  for (const parallel::TimedAction& timed : timeline) last = std::max(last, timed.end);
  beside_seconds_ = std::max(beside_seconds_, step_seconds - last);
}

double PipelineForecast::step_seconds(const parallel::SimulatedNetwork& network, double message_bytes) const {
  return beside_seconds_ +
         shape_.price({meter_.means(), network.latency_s, message_bytes / network.bytes_per_s}).makespan;
}

}  // namespace ridge
