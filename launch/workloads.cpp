#include "launch/workloads.h"

#include <sys/resource.h>

#include <algorithm>
#include <filesystem>

#include "core/autograd.h"
#include "core/base/random.h"
#include "core/models/weights.h"
#include "inference/sampling.h"
#include "launch/training_setup.h"
#include "lora/adapter.h"

namespace ridge {
namespace {

constexpr std::int64_t kBucketBytes = std::int64_t{64} << 20;

Tensor random_ids(const Shape& shape, std::int64_t vocab_size, std::uint64_t stream, Device device) {
  if (device == Device::meta) return Tensor::empty(shape, DType::i32, device);
  const Tensor ids = Tensor::empty(shape, DType::i32);
  std::uint64_t i = 0;
  for (std::int32_t& id : ids.span<std::int32_t>()) {
    id = static_cast<std::int32_t>(philox({7, stream}, i++)[0] % static_cast<std::uint64_t>(vocab_size));
  }
  return ids.on(device);
}

bool has_weights(const std::string& folder) {
  return std::filesystem::exists(folder + "/model.safetensors") ||
         std::filesystem::exists(folder + "/model.safetensors.index.json");
}

}  // namespace

std::unique_ptr<models::Llama> workload_model(const std::string& folder, DType dtype, bool random,
                                              Device device) {
  if (!random && has_weights(folder))
    return models::load_model(folder, dtype, models::LoadMode::train, device).model;
  auto model = std::make_unique<models::Llama>(models::ModelConfig::load(folder), dtype, device);
  model->initialize(0);
  return model;
}

TrainingWorkload::TrainingWorkload(models::Llama& model, const TrainingOptions& options,
                                   parallel::Communicator& ranks)
    : model_(model), options_(options) {
  require(options.batch >= 1 && options.sequence_length >= 1 && options.accumulate >= 1,
          "a batch of {} sequences of {} tokens, {} accumulated: all must be at least 1", options.batch,
          options.sequence_length, options.accumulate);
  model.set_recompute(options.recompute);
  model.set_deterministic(options.deterministic);
  if (options.lora_rank > 0) {
    lora::LoraConfig adapter;
    adapter.rank = options.lora_rank;
    adapter.alpha = 2.0 * static_cast<double>(options.lora_rank);
    adapter.targets = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"};
    lora::add_adapters(model.linears(), adapter, 0, model.device());
  }
  std::vector<Tensor> leaves;
  for (const nn::Parameter& p : model.parameters()) {
    if (options.lora_rank > 0 && !lora::is_adapter_parameter(p.name)) continue;
    autograd::set_requires_grad(*p.value, true);
    trained_.push_back({p.name, *p.value, p.value->ndim() >= 2});
    leaves.push_back(*p.value);
  }
  reducer_ = std::make_unique<parallel::GradientReducer>(leaves, ranks, kBucketBytes);
  optim::OptimizerOptions adamw;
  adamw.moments = options.moments;
  optimizer_ = optim::make_optimizer(adamw, trained_);
  const std::int64_t vocab_size = model.config().vocab_size;
  ids_ = random_ids({options.batch, options.sequence_length}, vocab_size, 0, model.device());
  targets_ = random_ids({options.batch, options.sequence_length}, vocab_size, 1, model.device());
}

void TrainingWorkload::step() {
  for (std::int64_t m = 0; m < options_.accumulate; ++m) {
    reducer_->begin(m + 1 == options_.accumulate);
    autograd::backward(model_.loss(ids_, targets_, 1.0 / static_cast<double>(tokens())));
  }
  reducer_->finish();
  optimizer_->step(1e-4, {1.0, reduced_norm(*reducer_, trained_), 1.0});
  optim::clear_gradients(trained_);
}

DecodingWorkload::DecodingWorkload(models::Llama& model, std::int64_t prompt, std::int64_t capacity)
    : model_(model), cache_(model.make_cache(1, capacity)) {
  require(prompt >= 1 && prompt < capacity, "a prompt of {} tokens: give at least 1 and less than {}", prompt,
          capacity);
  const autograd::NoGradScope no_grad;
  for (const nn::Parameter& p : model.parameters()) {
    const bool looked_up = p.name == "model.embed_tokens.weight" && !model.config().tied;
    if (!looked_up) weight_bytes_ += static_cast<double>(p.value->bytes());
  }
  model_.last_logits(random_ids({1, prompt}, model.config().vocab_size, 2, model.device()), &cache_);
}

void DecodingWorkload::step() {
  const autograd::NoGradScope no_grad;
  const Tensor ids = Tensor::from(std::vector<std::int32_t>{next_}, {1, 1});
  const Tensor logits = model_.last_logits(ids, &cache_).to(DType::f32).on(Device::cpu);
  next_ = inference::sample(logits.reshaped({-1}).span<float>(), {}, 0);
}

double DecodingWorkload::bytes_per_step() const {
  return weight_bytes_ +
         static_cast<double>((cache_.length() + 1) * model_.config().kv_bytes_per_token(model_.dtype()));
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
