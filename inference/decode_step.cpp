// A token of few sequences in five kernels a layer, each of which begins while the one ahead still runs.
#include <cmath>

#include "core/base/stream.h"
#include "inference/decode_model.h"
#include "kernels/decode_attention.h"
#include "kernels/rms_norm.h"

namespace ridge::inference {
namespace {

using kernels::ProductEnd;
using kernels::ProductSteps;

Tensor rows_of(const Tensor& room, std::int64_t rows) { return room.sliced(0, 0, rows); }

ProductSteps ending(ProductEnd end) {
  ProductSteps steps;
  steps.end = end;
  steps.early = true;
  return steps;
}

}  // namespace

ProductSteps DecodeModel::after_norm(const Tensor& weight_C) const {
  ProductSteps steps;
  steps.norm_K = weight_C.view<bf16>();
  steps.eps = model_.config().rms_norm_eps;
  steps.early = true;
  return steps;
}

// Gate and up in one kernel with what follows; else apart.
bool DecodeModel::joins_gate_up(const Layer& layer, std::int64_t sequences) const {
  ProductSteps steps = after_norm(layer.mlp_norm);
  steps.end = ProductEnd::swiglu;
  return model_.config().activation == "silu" && layer.gate_up.has_steps(sequences, steps, model_.device());
}

bool DecodeModel::has_step(std::int64_t sequences) const {
  if (model_.dtype() != DType::bf16) return false;
  const Device device = model_.device();
  bool all = true;
  for (const Layer& l : layers_) {
    const auto sum = [&](const Product& p) {
      return p.has_steps(sequences, ending(p.meets_ranks() ? ProductEnd::store : ProductEnd::add), device);
    };
    const bool gate_up =
        joins_gate_up(l, sequences) || l.gate_up.has_steps(sequences, after_norm(l.mlp_norm), device);
    all = all && gate_up && l.qkv.has_steps(sequences, after_norm(l.attention_norm), device) && sum(l.o) &&
          sum(l.down);
  }
  return all;
}

// x += the product of `in`.
void DecodeModel::step_sum(const Product& product, const Tensor& in_BK, const Tensor& x_BC) {
  if (!product.meets_ranks()) return product.run_steps(in_BK, ending(ProductEnd::add), x_BC);
  const Tensor delta = rows_of(room_.delta, x_BC.dim(0));
  product.run_steps(in_BK, ending(ProductEnd::store), delta);
  product.add_whole(delta, x_BC);
}

void DecodeModel::step_feed_forward(const Layer& layer, const Tensor& x_BC) {
  const std::int64_t B = x_BC.dim(0), F = intermediate_;
  const Tensor act = rows_of(room_.act, B);
  ProductSteps steps = after_norm(layer.mlp_norm);
  if (joins_gate_up(layer, B)) {
    steps.end = ProductEnd::swiglu;
    layer.gate_up.run_steps(x_BC, steps, act);
  } else {
    const Tensor gate_up = rows_of(room_.gate_up, B);
    layer.gate_up.run_steps(x_BC, steps, gate_up);
    activate<bf16>(gate_up.sliced(1, 0, F), gate_up.sliced(1, F, 2 * F), act);
  }
  step_sum(layer.down, act, x_BC);
}

void DecodeModel::step_layer(const Layer& layer, const Tensor& x_BC, const Tensor& positions_B,
                             const kernels::KvView& cache, std::int64_t keys) {
  const std::int64_t B = x_BC.dim(0), D = heads_.head_dim;
  const Tensor qkv = rows_of(room_.qkv, B), attended = rows_of(room_.attended, B);
  layer.qkv.run_steps(x_BC, after_norm(layer.attention_norm), qkv);
  kernels::CachedAttentionOptions options;
  options.scale = 1 / std::sqrt(static_cast<double>(D));
  options.window = layer.window;
  options.keys = keys;
  kernels::decode_attention<bf16>(current_stream(x_BC.device()), qkv.view<bf16>(),
                                  {heads_.heads, heads_.kv_heads, D}, cos_.view<float>(), sin_.view<float>(),
                                  positions_B.view<std::int32_t>(), cache, attended.view<bf16>(), options,
                                  room_.scratch.view<float>());
  step_sum(layer.o, attended, x_BC);
  step_feed_forward(layer, x_BC);
}

// The embedding's kernel is not overlapped: what was uploaded for the step is there when the others begin.
Tensor DecodeModel::step(const Tensor& ids_B, const Tensor& positions_B, const Cache& cache,
                         std::int64_t first, std::int64_t keys) {
  const std::int64_t B = positions_B.dim(0);
  const Tensor x = embed<bf16>(ids_B);
  for (std::size_t l = 0; l < layers_.size(); ++l)
    step_layer(layers_[l], x, positions_B, cache.view(static_cast<std::int64_t>(l), first, B), keys);
  return step_head(x);
}

// A vocabulary that is not whole tiles of rows goes the plain way.
Tensor DecodeModel::step_head(const Tensor& x_BC) {
  const std::int64_t B = x_BC.dim(0), C = x_BC.dim(1);
  const Tensor logits = rows_of(room_.logits, B);
  if (head_.has_steps(B, after_norm(norm_), x_BC.device())) {
    head_.run_steps(x_BC, after_norm(norm_), logits);
    head_.make_whole(logits);
    return logits;
  }
  const Tensor y = rows_of(room_.last_y, B);
  kernels::rms_norm<bf16>(current_stream(x_BC.device()), x_BC.view<bf16>(), norm_.view<bf16>(),
                          y.view<bf16>(), View<float>(), model_.config().rms_norm_eps);
  return head_.run(y.reshaped({B, 1, C}), logits).reshaped({B, -1});
}

}  // namespace ridge::inference
