#include "launch/rank_model.h"

#include <map>

#include "launch/context.h"
#include "launch/quantized_layers.h"
#include "parallel/tensor_parallel.h"

namespace ridge {
namespace {

DType dtype_of_rank(const ModelOptions& options, const models::ModelConfig& config) {
  if (options.dtype != "auto") return parse_dtype(options.dtype);
  return config.dtype == DType::bf16 ? DType::bf16 : DType::f32;
}

std::optional<kernels::WeightFormat> format_of(const ModelOptions& options) {
  if (options.quantize.empty()) return std::nullopt;
  return kernels::parse_weight_format(options.quantize);
}

// Sums of few rows pass by the collectives where GPUs see each other's memory.
parallel::TensorParallelOptions shared_sums(parallel::Communicator& ranks, Device device,
                                            const Context& context) {
  parallel::TensorParallelOptions how;
  if (device != Device::cuda || ranks.size() == 1) return how;
  std::string why;
  how.one_shot = parallel::one_shot_reduce(ranks, device, &why);
  if (how.one_shot == nullptr) context.note("sums over ranks go through NCCL: " + why);
  return how;
}

}  // namespace

RankModel load_over_ranks(const ModelOptions& options, std::int64_t tp, const Context& context) {
  require(tp == context.ranks().size(), "--tp {} needs as many ranks: {} were started", tp,
          context.ranks().size());
  require(options.adapter.empty(), "--tp takes a model without --adapter: merge it, or use one rank");
  require(!options.quantize_head, "--quantize-head takes one rank: leave it out with --tp");
  const models::ModelWeights weights(options.model);
  parallel::check_tensor_parallel(weights.config(), static_cast<int>(tp), false, 0);
  const Device device = context.use_device();
  parallel::Mesh::Coordinates sizes;
  sizes.fill(1);
  sizes[static_cast<std::size_t>(parallel::Axis::tp)] = static_cast<int>(tp);
  RankModel mine;
  mine.groups = context.groups(parallel::Mesh(sizes), device);
  const DType dtype = dtype_of_rank(options, weights.config());
  QuantizedLayers quantized(&weights, format_of(options));
  models::Llama plan(weights.config(), dtype, Device::meta);
  quantized.replace(plan.linears());
  std::map<std::string, Shape> whole;
  for (const nn::Parameter& p : plan.parameters()) whole[p.name] = p.value->shape();

  mine.model = std::make_unique<models::Llama>(weights.config(), dtype, Device::meta);
  parallel::Communicator& ranks = mine.groups->along(parallel::Axis::tp);
  auto places = parallel::apply_tensor_parallel(*mine.model, ranks, shared_sums(ranks, device, context));
  quantized.replace_pieces(mine.model->linears(), ranks, places);
  weights.prefetch();
  const PurposeScope purpose(Purpose::weights);
  const auto dense = [&](const std::string& name, const Shape& shape) {
    return weights.read(name, shape).on(device);
  };
  for (const nn::Parameter& p : mine.model->parameters()) {
    const parallel::Placement& place = places.at(p.name);
    const bool codes = quantized.holds(p.name);
    const Tensor all = codes ? quantized.value(p.name, dense) : weights.read(p.name, whole.at(p.name));
    const Tensor piece = place.dim < 0 ? all : all.sliced(place.dim, place.begin, place.end);
    *p.value = (codes ? piece : piece.to(dtype)).contiguous_copy().on(device);
  }
  mine.model->adopt(device);
  for (const std::string& note : weights.notes()) context.note(note);
  return mine;
}

}  // namespace ridge
