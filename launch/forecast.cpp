#include "launch/forecast.h"

#include "core/base/cuda.h"
#include "core/base/error.h"
#include "core/base/profiler.h"
#include "launch/pipeline_times.h"
#include "launch/run_config.pb.h"
#include "launch/training_setup.h"

namespace ridge {
namespace {

// One rank of a run on meta, with clocks of its own.
class MetaRank {
 public:
  MetaRank(const models::ModelConfig& config, const config::RunConfig& run, std::int64_t micro_batches,
           int rank, const parallel::SimulatedNetwork& network)
      : groups_(parallel::Groups::simulated(mesh_of(run), rank, network)),
        model_(config, nullptr, parallel_options(run), groups_, Device::meta),
        optimizer_(optim::make_optimizer(optimizer_options(run), model_.trained())) {
    std::int64_t tokens = 0;
    for (const auto& [begin, end] : model_.token_ranges(run.data().sequence_length())) tokens += end - begin;
    const Tensor ids = Tensor::empty({run.train().micro_batch(), tokens}, DType::i32, Device::meta);
    batches_.assign(static_cast<std::size_t>(micro_batches), {ids, ids});
    if (model_.pipeline() != nullptr) model_.pipeline()->measure(true);
  }

  void step() {
    model_.forward_backward(batches_, 1, {});
    optimizer_->step(1e-3, {1.0, model_.gradient_norm(), 1.0});
    model_.updated();
    optim::clear_gradients(model_.trained());
  }

  // The clocks go on from the step before: what that sent last may arrive in this one.
  SimulatedStep timed_step() {
    return simulate_step(groups_, [this] { step(); });
  }

  const parallel::Pipeline* pipeline() { return model_.pipeline(); }

 private:
  parallel::Groups groups_;
  ParallelModel model_;
  std::unique_ptr<optim::Optimizer> optimizer_;
  std::vector<Batch> batches_;
};

// The rank's own seconds, or where there is a pipeline those of all its stages.
double pipeline_seconds(const models::ModelConfig& config, const config::RunConfig& run,
                        std::int64_t micro_batches, const parallel::SimulatedNetwork& network, int mine,
                        MetaRank& mine_on_meta, double my_seconds) {
  if (mine_on_meta.pipeline() == nullptr) return my_seconds;
  const parallel::Mesh mesh = mesh_of(run);
  const ParallelOptions options = parallel_options(run);
  PipelineForecast forecast(pipeline_shape(options, mesh, micro_batches));
  forecast.add(mine_on_meta.pipeline()->timeline(), my_seconds);
  for (const int rank : mesh.group(mine, {parallel::Axis::pp})) {
    if (rank == mine) continue;
    MetaRank other(config, run, micro_batches, rank, network);
    other.step();
    const double seconds = other.timed_step().seconds;
    forecast.add(other.pipeline()->timeline(), seconds);
  }
  const std::int64_t tokens = run.train().micro_batch() * run.data().sequence_length();
  return forecast.step_seconds(network, message_bytes(options, mesh, tokens, config.hidden_size));
}

}  // namespace

Forecast forecast_training(const models::ModelConfig& config, const config::RunConfig& run,
                           std::int64_t micro_batches, Device device, const Ceilings& roof, int rank,
                           const parallel::SimulatedNetwork& network) {
  Stream& stream = current_stream(Device::meta);
  stream.meta_device = device;
  MetaRank on_meta(config, run, micro_batches, rank, network);
  reset_memory_peaks(Device::meta);
  stream.meta_ceilings = roof;
  on_meta.step();
  Profiler profiler;
  Forecast forecast;
  {
    const ProfilerScope scope(stream, &profiler);
    const SimulatedStep step = on_meta.timed_step();
    forecast.step_seconds = step.seconds;
    forecast.exposed_seconds = step.exposed_seconds;
  }
  for (const LaunchRecord& record : profiler.records()) forecast.step_flops += record.flops;
  forecast.memory = memory_stats(Device::meta);
  forecast.peak_bytes = forecast.memory.peak_reserved;
  forecast.step_seconds =
      pipeline_seconds(config, run, micro_batches, network, rank, on_meta, forecast.step_seconds);
  return forecast;
}

void require_room(const Forecast& forecast, Device device) {
  if (device != Device::cuda) return;
  const auto gib = [](std::int64_t bytes) { return static_cast<double>(bytes) / (1024.0 * 1024.0 * 1024.0); };
  const cuda::DeviceMemory gpu = cuda::device_memory();
  if (forecast.peak_bytes <= gpu.free) return;
  std::string purposes;
  for (std::size_t p = 0; p < kPurposes; ++p) {
    purposes += fmt::format("{}{} {:.1f}", p == 0 ? "" : ", ", name_of(static_cast<Purpose>(p)),
                            gib(forecast.memory.peak_by_purpose[p]));
  }
  fail_user(
      "the run needs {:.1f} GiB on this rank's GPU (most of each purpose: {}), which has {:.1f} of {:.1f} "
      "GiB free: "
      "lower train.micro_batch or data.sequence_length, or set train.recompute=blocks or optim.moments=bf16",
      gib(forecast.peak_bytes), purposes, gib(gpu.free), gib(gpu.total));
}

}  // namespace ridge
