// From the run config to the parts of a training run.
#pragma once

#include <memory>

#include "core/models/llama.h"
#include "core/models/weights.h"
#include "launch/batch_source.h"
#include "optim/optimizer.h"
#include "optim/schedule.h"
#include "parallel/data_parallel.h"

namespace ridge {
class Tokenizer;
namespace config {
class RunConfig;
}

/// f32 or bf16, of weights and activations.
DType training_dtype(const config::RunConfig& run);
optim::OptimizerOptions optimizer_options(const config::RunConfig& run);
ScheduleOptions schedule_options(const config::RunConfig& run);

/// The 2-norm of the gradients that `reducer` holds, f64 [1]: over its buckets where they lie on a GPU.
Tensor reduced_norm(const parallel::GradientReducer& reducer,
                    const std::vector<optim::TrainedParameter>& trained);
/// Bytes of a bucket of gradients.
std::int64_t bucket_bytes(const config::RunConfig& run);

/// The config of the model that is trained, without its weights.
models::ModelConfig model_config(const config::RunConfig& run);
/// The model with weights that may be written: from a folder, or random.
models::LoadedModel make_model(const config::RunConfig& run, Device device);
/// The tokenizer of model.tokenizer, or of model.path.
Tokenizer run_tokenizer(const config::RunConfig& run);
/// Where that tokenizer lies.
std::string tokenizer_folder(const config::RunConfig& run);

}  // namespace ridge
