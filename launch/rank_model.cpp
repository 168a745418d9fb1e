#include "launch/rank_model.h"

#include <map>

#include "launch/context.h"
#include "parallel/tensor_parallel.h"

namespace ridge {
namespace {

DType dtype_of_rank(const ModelOptions& options, const models::ModelConfig& config) {
  if (options.dtype != "auto") return parse_dtype(options.dtype);
  return config.dtype == DType::bf16 ? DType::bf16 : DType::f32;
}

}  // namespace

RankModel load_over_ranks(const ModelOptions& options, std::int64_t tp, const Context& context) {
  require(tp == context.ranks().size(), "--tp {} needs as many ranks: {} were started", tp,
          context.ranks().size());
  require(options.adapter.empty() && options.quantize.empty(),
          "--tp takes a model as it is stored, without --adapter and --quantize: merge the adapter, or use "
          "one rank");
  const models::ModelWeights weights(options.model);
  require(!weights.is_quantized(), "--tp: {} has quantized layers, which one rank takes", options.model);
  parallel::check_tensor_parallel(weights.config(), static_cast<int>(tp), false, 0);
  const Device device = context.use_device();
  parallel::Mesh::Coordinates sizes;
  sizes.fill(1);
  sizes[static_cast<std::size_t>(parallel::Axis::tp)] = static_cast<int>(tp);
  RankModel mine;
  mine.groups = context.groups(parallel::Mesh(sizes), device);
  const DType dtype = dtype_of_rank(options, weights.config());
  mine.model = std::make_unique<models::Llama>(weights.config(), dtype, Device::meta);
  std::map<std::string, Shape> whole;
  for (const nn::Parameter& p : mine.model->parameters()) whole[p.name] = p.value->shape();
  const auto places =
      parallel::apply_tensor_parallel(*mine.model, mine.groups->along(parallel::Axis::tp), {});
  weights.prefetch();
  const PurposeScope purpose(Purpose::weights);
  for (const nn::Parameter& p : mine.model->parameters()) {
    const parallel::Placement& place = places.at(p.name);
    const Tensor all = weights.read(p.name, whole.at(p.name));
    const Tensor piece = place.dim < 0 ? all : all.sliced(place.dim, place.begin, place.end);
    *p.value = piece.contiguous_copy().to(dtype).on(device);
  }
  mine.model->adopt(device);
  for (const std::string& note : weights.notes()) context.note(note);
  return mine;
}

}  // namespace ridge
