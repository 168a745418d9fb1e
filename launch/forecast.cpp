#include "launch/forecast.h"

#include "core/autograd.h"
#include "core/base/cuda.h"
#include "core/base/error.h"
#include "core/base/profiler.h"
#include "launch/parallelize.h"
#include "launch/run_config.pb.h"
#include "launch/training_setup.h"
#include "parallel/data_parallel.h"

namespace ridge {
namespace {

void meta_step(models::Llama& model, const config::RunConfig& run, const Prepared& prepared,
               parallel::GradientReducer& reducer, optim::Optimizer& optimizer, std::int64_t micro_batches) {
  const Shape shape{run.train().micro_batch(), run.data().sequence_length()};
  for (std::int64_t m = 0; m < micro_batches; ++m) {
    const Tensor ids = Tensor::empty(shape, DType::i32, Device::meta);
    reducer.begin(m + 1 == micro_batches);
    autograd::backward(model.loss(ids, ids, 1));
  }
  reducer.finish();
  optimizer.step(1e-3, {1.0, reduced_norm(reducer, prepared.trained), 1.0});
  optim::clear_gradients(prepared.trained);
}

}  // namespace

Forecast forecast_training(const models::ModelConfig& config, const config::RunConfig& run,
                           std::int64_t micro_batches, Device device, const Ceilings& roof) {
  reset_memory_peaks(Device::meta);
  current_stream(Device::meta).meta_device = device;
  models::Llama model(config, training_dtype(run), Device::meta);
  const Prepared prepared = parallelize(model, run);
  std::vector<Tensor> leaves;
  for (const optim::TrainedParameter& p : prepared.trained) leaves.push_back(p.value);
  const auto alone = parallel::self_communicator();
  parallel::GradientReducer reducer(leaves, *alone, bucket_bytes(run));
  const auto optimizer = optim::make_optimizer(optimizer_options(run), prepared.trained);
  Stream& stream = current_stream(Device::meta);
  stream.meta_ceilings = roof;
  meta_step(model, run, prepared, reducer, *optimizer, micro_batches);
  stream.virtual_seconds = 0;
  Profiler profiler;
  {
    const ProfilerScope scope(stream, &profiler);
    meta_step(model, run, prepared, reducer, *optimizer, micro_batches);
  }
  Forecast forecast;
  forecast.step_seconds = stream.virtual_seconds;
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
