#include "launch/rank_model.h"

#include <functional>
#include <map>

#include "inference/quantized_rows.h"
#include "launch/context.h"
#include "launch/quantized_layers.h"
#include "launch/rank_adapters.h"
#include "launch/workloads.h"
#include "lora/adapter.h"
#include "parallel/tensor_parallel.h"

namespace ridge {
namespace {

DType dtype_of_rank(const ModelOptions& options, const models::ModelConfig& config) {
  if (options.dtype != "auto") return parse_dtype(options.dtype);
  return config.dtype == DType::bf16 ? DType::bf16 : DType::f32;
}

std::optional<kernels::WeightFormat> format_of(const std::string& name) {
  if (name.empty()) return std::nullopt;
  return kernels::parse_weight_format(name);
}

// Sums of few rows pass by the collectives where GPUs see each other's memory.
parallel::TensorParallelOptions shared_sums(parallel::Communicator& ranks, Device device,
                                            const Context& context) {
  parallel::TensorParallelOptions how;
  if (device != Device::cuda || ranks.size() == 1) return how;
  std::string why;
  how.one_shot = parallel::one_shot_reduce(ranks, device, &why);
  if (how.one_shot == nullptr)
    context.note("sums over ranks go through NCCL, and steps are not recorded: " + why);
  return how;
}

// A parameter's whole value, on any device; of a quantized weight before it is so.
using Dense = std::function<Tensor(const std::string& name, const Shape& shape)>;

// Dense weights of one input lie side by side in memory: they are one product.
void join_weights(models::Llama& model) {
  std::map<std::string, nn::DenseLinear*> dense;
  for (const nn::LinearSlot& slot : model.linears()) {
    std::unique_ptr<nn::Linear>* inner = (*slot.slot)->inner();
    if (inner == nullptr) continue;
    if (auto* piece = dynamic_cast<nn::DenseLinear*>(inner->get())) dense[slot.path] = piece;
  }
  const auto join = [&](const std::string& path, const std::vector<std::string>& names) {
    std::vector<Tensor*> weights, biases;
    for (const std::string& name : names) {
      const auto found = dense.find(path + name);
      if (found == dense.end()) return;
      weights.push_back(&found->second->weight());
      if (found->second->bias().defined()) biases.push_back(&found->second->bias());
    }
    inference::join_tensors(weights);
    if (biases.size() == weights.size()) inference::join_tensors(biases);
  };
  for (std::int64_t l = 0; l < model.config().layers; ++l) {
    const std::string path = fmt::format("model.layers.{}.", l);
    join(path, {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"});
    join(path, {"mlp.gate_proj", "mlp.up_proj"});
  }
}

void check_ranks(const models::ModelConfig& config, std::int64_t tp, const Context& context) {
  require(tp == context.ranks().size(), "--tp {} needs as many ranks: {} were started", tp,
          context.ranks().size());
  parallel::check_tensor_parallel(config, static_cast<int>(tp), false, 0);
}

// What every rank says of the whole model.
struct Source {
  const models::ModelConfig& config;
  DType dtype;
  QuantizedLayers& quantized;
  Dense dense;
  std::string adapter = {};  // PEFT folder, or empty
};

// Adapters around `whole` with their values, which are small, and around `mine` on meta.
std::map<std::string, Tensor> add_adapter(const std::string& folder, models::Llama& whole,
                                          models::Llama& mine,
                                          const std::map<std::string, parallel::Placement>& weights,
                                          const parallel::Communicator& ranks,
                                          std::map<std::string, parallel::Placement>& places,
                                          const Context& context) {
  std::vector<std::string> notes;
  const lora::LoraConfig config = lora::load_adapter(whole.linears(), folder, notes);
  for (const std::string& note : notes) context.note(note);
  add_rank_adapters(mine, config, 0, weights, ranks, places);
  std::map<std::string, Tensor> values;
  for (const nn::Parameter& p : whole.parameters()) {
    if (lora::is_adapter_parameter(p.name)) values[p.name] = *p.value;
  }
  return values;
}

// One whole parameter at a time comes to life, and this rank keeps its piece.
RankModel cut_over_ranks(const Source& source, Device device, const Context& context) {
  const models::ModelConfig& config = source.config;
  const DType dtype = source.dtype;
  QuantizedLayers& quantized = source.quantized;
  const Dense& dense = source.dense;
  parallel::Mesh::Coordinates sizes;
  sizes.fill(1);
  sizes[static_cast<std::size_t>(parallel::Axis::tp)] = context.ranks().size();
  RankModel mine;
  mine.groups = context.groups(parallel::Mesh(sizes), device);
  models::Llama plan(config, dtype, Device::meta);
  quantized.replace(plan.linears());
  std::map<std::string, Shape> whole;
  for (const nn::Parameter& p : plan.parameters()) whole[p.name] = p.value->shape();

  mine.model = std::make_unique<models::Llama>(config, dtype, Device::meta);
  parallel::Communicator& ranks = mine.groups->along(parallel::Axis::tp);
  auto places = parallel::apply_tensor_parallel(*mine.model, ranks, shared_sums(ranks, device, context));
  const auto weights = weight_placements(*mine.model, places);
  quantized.replace_pieces(mine.model->linears(), ranks, places);
  std::map<std::string, Tensor> adapter;
  if (!source.adapter.empty())
    adapter = add_adapter(source.adapter, plan, *mine.model, weights, ranks, places, context);
  const PurposeScope purpose(Purpose::weights);
  const auto near = [&](const std::string& name, const Shape& shape) {
    return dense(name, shape).on(device);
  };
  for (const nn::Parameter& p : mine.model->parameters()) {
    const parallel::Placement& place = places.at(p.name);
    const bool codes = quantized.holds(p.name), adapts = adapter.contains(p.name);
    const Tensor all = adapts  ? adapter.at(p.name)
                       : codes ? quantized.value(p.name, near)
                               : dense(p.name, whole.at(p.name));
    const Tensor piece = place.dim < 0 ? all : all.sliced(place.dim, place.begin, place.end);
    *p.value = (codes || adapts ? piece : piece.to(dtype)).contiguous_copy().on(device);
  }
  join_weights(*mine.model);
  mine.model->adopt(device);
  return mine;
}

}  // namespace

RankModel load_over_ranks(const ModelOptions& options, std::int64_t tp, const Context& context) {
  require(!options.quantize_head, "--quantize-head takes one rank: leave it out with --tp");
  const models::ModelWeights weights(options.model);
  check_ranks(weights.config(), tp, context);
  const Device device = context.use_device();
  QuantizedLayers quantized(&weights, format_of(options.quantize));
  weights.prefetch();
  const auto stored = [&](const std::string& name, const Shape& shape) { return weights.read(name, shape); };
  const DType dtype = dtype_of_rank(options, weights.config());
  RankModel mine =
      cut_over_ranks({weights.config(), dtype, quantized, stored, options.adapter}, device, context);
  std::vector<std::string> notes = weights.notes();
  if (!options.adapter.empty()) lora::note_base(options.adapter, options.model, notes);
  for (const std::string& note : notes) context.note(note);
  return mine;
}

RankModel random_over_ranks(const DecoderOptions& options, std::int64_t tp, Device device,
                            const Context& context) {
  require(!options.quantize_head, "--quantize-head takes one rank: leave it out with --tp");
  const DType dtype = options.checked_dtype();
  check_random_format(options);
  const auto config = models::ModelConfig::load(options.model);
  check_ranks(config, tp, context);
  std::map<std::string, std::uint64_t> index;  // among the parameters of the dense model
  for (models::Llama dense(config, dtype, Device::meta); const nn::Parameter& p : dense.parameters())
    index[p.name] = index.size();
  QuantizedLayers quantized(nullptr, format_of(options.quantize));
  const auto drawn = [&](const std::string& name, const Shape& shape) {
    Tensor value = Tensor::empty(shape, dtype, device);
    models::initialize_parameter(config, {name, &value}, index.at(name), kWorkloadSeed);
    return value;
  };
  return cut_over_ranks({config, dtype, quantized, drawn}, device, context);
}

}  // namespace ridge
