#include "launch/forecast.h"

#include "core/base/cuda.h"
#include "core/base/error.h"
#include "core/base/profiler.h"
#include "launch/run_config.pb.h"
#include "launch/training_setup.h"

namespace ridge {
namespace {

void meta_step(ParallelModel& model, const config::RunConfig& run, optim::Optimizer& optimizer,
               std::int64_t micro_batches) {
  std::int64_t tokens = 0;
  for (const auto& [begin, end] : model.token_ranges(run.data().sequence_length())) tokens += end - begin;
  std::vector<Batch> batches;
  for (std::int64_t m = 0; m < micro_batches; ++m) {
    const Tensor ids = Tensor::empty({run.train().micro_batch(), tokens}, DType::i32, Device::meta);
    batches.push_back({ids, ids});
  }
  model.forward_backward(batches, 1, {});
  optimizer.step(1e-3, {1.0, model.gradient_norm(), 1.0});
  model.updated();
  optim::clear_gradients(model.trained());
}

}  // namespace

Forecast forecast_training(const models::ModelConfig& config, const config::RunConfig& run,
                           std::int64_t micro_batches, Device device, const Ceilings& roof,
                           const parallel::SimulatedNetwork& network) {
  Stream& stream = current_stream(Device::meta);
  stream.meta_device = device;
  parallel::Groups groups = parallel::Groups::simulated(mesh_of(run), 0, network);
  ParallelModel model(config, nullptr, parallel_options(run), groups, Device::meta);
  const auto optimizer = optim::make_optimizer(optimizer_options(run), model.trained());
  reset_memory_peaks(Device::meta);
  stream.meta_ceilings = roof;
  meta_step(model, run, *optimizer, micro_batches);
  stream.virtual_seconds = 0;
  groups.reset_clocks();
  Profiler profiler;
  {
    const ProfilerScope scope(stream, &profiler);
    meta_step(model, run, *optimizer, micro_batches);
  }
  Forecast forecast;
  forecast.step_seconds = stream.virtual_seconds;
  for (int axis = 0; axis < parallel::kAxes; ++axis)
    forecast.exposed_seconds += groups.time(static_cast<parallel::Axis>(axis)).exposed_seconds;
  for (const LaunchRecord& record : profiler.records()) forecast.step_flops += record.flops;
  forecast.memory = memory_stats(Device::meta);
  forecast.peak_bytes = forecast.memory.peak_reserved;
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
      "the run needs {:.1f} GiB on each GPU (most of each purpose: {}), which has {:.1f} of {:.1f} GiB free: "
      "lower "
      "train.micro_batch or data.sequence_length, or set train.recompute=blocks or optim.moments=bf16",
      gib(forecast.peak_bytes), purposes, gib(gpu.free), gib(gpu.total));
}

}  // namespace ridge
