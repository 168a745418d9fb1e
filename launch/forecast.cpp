#include "launch/forecast.h"

#include "core/autograd.h"
#include "core/base/profiler.h"
#include "launch/parallelize.h"
#include "launch/run_config.pb.h"
#include "launch/training_setup.h"

namespace ridge {
namespace {

void meta_step(models::Llama& model, const config::RunConfig& run, const Prepared& prepared,
               optim::Optimizer& optimizer, std::int64_t micro_batches) {
  const Shape shape{run.train().micro_batch(), run.data().sequence_length()};
  for (std::int64_t m = 0; m < micro_batches; ++m) {
    const Tensor ids = Tensor::empty(shape, DType::i32, Device::meta);
    autograd::backward(model.loss(ids, ids, 1));
  }
  optimizer.step(1e-3, {1.0, optim::gradient_norm_tensor(prepared.trained), 1.0});
  optim::clear_gradients(prepared.trained);
}

}  // namespace

Forecast forecast_training(const models::ModelConfig& config, const config::RunConfig& run,
                           std::int64_t micro_batches, Device device, const Ceilings& roof) {
  reset_memory_peaks(Device::meta);
  current_stream(Device::meta).meta_device = device;
  models::Llama model(config, training_dtype(run), Device::meta);
  const Prepared prepared = parallelize(model, run);
  const auto optimizer = optim::make_optimizer(optimizer_options(run), prepared.trained);
  Stream& stream = current_stream(Device::meta);
  stream.meta_ceilings = roof;
  meta_step(model, run, prepared, *optimizer, micro_batches);
  stream.virtual_seconds = 0;
  Profiler profiler;
  {
    const ProfilerScope scope(stream, &profiler);
    meta_step(model, run, prepared, *optimizer, micro_batches);
  }
  Forecast forecast;
  forecast.step_seconds = stream.virtual_seconds;
  for (const LaunchRecord& record : profiler.records()) forecast.step_flops += record.flops;
  forecast.peak_bytes = memory_stats(Device::meta).peak_reserved;
  return forecast;
}

}  // namespace ridge
