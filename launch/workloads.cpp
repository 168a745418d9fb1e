#include "launch/workloads.h"

#include <sys/resource.h>

#include <algorithm>
#include <filesystem>

#include "core/autograd.h"
#include "core/base/random.h"
#include "core/models/weights.h"

namespace ridge {
namespace {

Tensor random_ids(const Shape& shape, std::int64_t vocab_size, std::uint64_t stream, Device device) {
  if (device == Device::meta) return Tensor::empty(shape, DType::i32, device);
  const Tensor ids = Tensor::empty(shape, DType::i32);
  std::uint64_t i = 0;
  for (std::int32_t& id : ids.span<std::int32_t>()) {
    id = static_cast<std::int32_t>(philox({7, stream}, i++)[0] % static_cast<std::uint64_t>(vocab_size));
  }
  return ids.on(device);
}

}  // namespace

bool has_weights(const std::string& folder) {
  return std::filesystem::exists(folder + "/model.safetensors") ||
         std::filesystem::exists(folder + "/model.safetensors.index.json");
}

std::unique_ptr<models::Llama> workload_model(const std::string& folder, DType dtype, bool random,
                                              Device device) {
  if (!random && has_weights(folder))
    return models::load_model(folder, dtype, models::LoadMode::train, device).model;
  auto model = std::make_unique<models::Llama>(models::ModelConfig::load(folder), dtype, device);
  model->initialize(kWorkloadSeed);
  return model;
}

TrainingWorkload::TrainingWorkload(const models::ModelConfig& config, const models::ModelWeights* weights,
                                   const TrainingOptions& options, parallel::Groups& groups, Device device)
    : options_(options) {
  require(options.batch >= 1 && options.sequence_length >= 1 && options.accumulate >= 1,
          "a batch of {} sequences of {} tokens, {} accumulated: all must be at least 1", options.batch,
          options.sequence_length, options.accumulate);
  if (options.lora_rank > 0) {
    options_.layout.lora.emplace();
    options_.layout.lora->rank = options.lora_rank;
    options_.layout.lora->alpha = 2.0 * static_cast<double>(options.lora_rank);
    options_.layout.lora->targets = {"q_proj",    "k_proj",  "v_proj",   "o_proj",
                                     "gate_proj", "up_proj", "down_proj"};
  }
  model_ = std::make_unique<ParallelModel>(config, weights, options_.layout, groups, device);
  optim::OptimizerOptions adamw;
  adamw.moments = options.moments;
  optimizer_ = optim::make_optimizer(adamw, model_->trained());
  std::int64_t held = 0;
  for (const auto& [begin, end] : model_->token_ranges(options.sequence_length)) held += end - begin;
  const Batch batch{random_ids({options.batch, held}, config.vocab_size, 0, device),
                    random_ids({options.batch, held}, config.vocab_size, 1, device)};
  batches_.assign(static_cast<std::size_t>(options.accumulate), batch);
  scale_ = 1.0 / static_cast<double>(options.batch * options.sequence_length * options.accumulate *
                                     groups.mesh().data_ranks());
}

double TrainingWorkload::tokens() const { return 1.0 / scale_ / model_->groups().mesh().ranks(); }

void TrainingWorkload::step(const std::function<void()>& before_update) {
  model_->forward_backward(batches_, scale_, {});
  const Tensor norm = model_->gradient_norm();
  if (before_update) before_update();
  optimizer_->step(1e-4, {1.0, norm, 1.0});
  model_->updated();
  optim::clear_gradients(model_->trained());
}

double median(std::vector<double> values) {
  if (values.empty()) return 0;
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

std::int64_t peak_resident_bytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<std::int64_t>(usage.ru_maxrss) * 1024;
}

}  // namespace ridge
