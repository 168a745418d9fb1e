// From the run config to the parts of a training run.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "core/models/llama.h"
#include "core/models/weights.h"
#include "launch/batch_source.h"
#include "launch/parallelize.h"
#include "optim/optimizer.h"
#include "optim/schedule.h"
#include "parallel/mesh.h"

namespace ridge {
class Tokenizer;
namespace config {
class Model;
class Parallel;
class RunConfig;
}  // namespace config

/// f32 or bf16, of weights and activations.
DType training_dtype(const config::RunConfig& run);
optim::OptimizerOptions optimizer_options(const config::RunConfig& run);
ScheduleOptions schedule_options(const config::RunConfig& run);

/// Of a run that starts from an adapter: a UserError where `lora` gives another value than that adapter has;
/// `lora.dropout` alone may. Returns notes for the user.
std::vector<std::string> check_adapter(const config::RunConfig& run);

/// How `parallel` cuts a model; the rest at its defaults.
ParallelOptions layout_options(const config::Parallel& parallel);
/// How the model is cut, and what is done to it.
ParallelOptions parallel_options(const config::RunConfig& run);
/// model.quantize with model.double_quant; absent: weights are used as they are stored.
std::optional<kernels::WeightFormat> quantize_format(const config::Model& model);
/// The ranks' arrangement, of a resolved config.
parallel::Mesh mesh_of(const config::RunConfig& run);

/// The config of the model that is trained, without its weights.
models::ModelConfig model_config(const config::RunConfig& run);
/// The weights of model.path; null for a model with random ones.
std::unique_ptr<models::ModelWeights> run_weights(const config::RunConfig& run);
/// The tokenizer of model.tokenizer, or of model.path.
Tokenizer run_tokenizer(const config::RunConfig& run);
/// Where that tokenizer lies.
std::string tokenizer_folder(const config::RunConfig& run);

}  // namespace ridge
