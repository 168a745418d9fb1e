#include "inference/decode_model.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <map>
#include <typeinfo>

#include "core/autograd.h"
#include "core/base/stream.h"
#include "kernels/activation.h"
#include "kernels/cached_attention.h"
#include "kernels/decode_attention.h"
#include "kernels/elementwise.h"
#include "kernels/embedding.h"
#include "kernels/rms_norm.h"
#include "kernels/rotary.h"
#include "parallel/collective_ops.h"
#include "parallel/one_shot_reduce.h"
#include "parallel/parallel_linear.h"

namespace ridge::inference {
namespace {

Tensor rows_of(const Tensor& room, std::int64_t rows) { return room.sliced(0, 0, rows); }

// Row p is that of a text of p + 1 tokens: dynamic scaling stretches with the length.
void fill_tables(const models::ModelConfig& config, const Tensor& cos, const Tensor& sin) {
  const nn::RopeConfig& rope = config.rope;
  const double scale = kernels::rotary_attention_scale(rope.scaling, rope.max_position);
  const auto fill = [&](std::int64_t begin, std::int64_t end, std::int64_t length) {
    const auto inv_freq =
        kernels::rotary_inv_freq(rope.theta, rope.head_dim, rope.scaling, rope.max_position, length);
    kernels::rotary_table(inv_freq, scale, begin, cos.sliced(0, begin, end).view<float>(),
                          sin.sliced(0, begin, end).view<float>());
  };
  const bool dynamic = rope.scaling.kind == kernels::RopeScaling::Kind::dynamic;
  const std::int64_t alike = dynamic ? std::min(cos.dim(0), rope.max_position) : cos.dim(0);
  fill(0, alike, dynamic ? rope.max_position : 0);
  for (std::int64_t p = alike; p < cos.dim(0); ++p) fill(p, p + 1, p + 1);
}

}  // namespace

DecodeModel::DecodeModel(models::Llama& model, std::int64_t rows, std::int64_t sequences)
    : model_(model), sequences_(sequences) {
  require(model.dtype() == DType::f32 || model.dtype() == DType::bf16,
          "decoding takes a model in f32 or bf16, not in {}", name_of(model.dtype()));
  find_layers();
  widen(std::max(rows, sequences));
  steps_ = sequences <= kernels::kDecodeRows && has_step(sequences);
}

void DecodeModel::find_layers() {
  const models::ModelConfig& c = model_.config();
  std::map<std::string, nn::Linear*> linears;
  for (const nn::LinearSlot& slot : model_.linears()) linears[slot.path] = slot.slot->get();
  std::map<std::string, Tensor> values;
  for (const nn::Parameter& p : model_.parameters()) values[p.name] = p.value->detached();
  for (std::int64_t l = 0; l < c.layers; ++l) {
    const std::string path = fmt::format("model.layers.{}.", l);
    const auto linear = [&](const char* name) { return linears.at(path + name); };
    nn::Linear *q = linear("self_attn.q_proj"), *k = linear("self_attn.k_proj");
    layers_.push_back({values.at(path + "input_layernorm.weight"),
                       values.at(path + "post_attention_layernorm.weight"),
                       Product({q, k, linear("self_attn.v_proj")}), Product({linear("self_attn.o_proj")}),
                       Product({linear("mlp.gate_proj"), linear("mlp.up_proj")}),
                       Product({linear("mlp.down_proj")}), c.window(l)});
    heads_ = {q->out_features() / c.head_dim, k->out_features() / c.head_dim, c.head_dim};
    intermediate_ = linear("mlp.gate_proj")->out_features();
  }
  norm_ = values.at("model.norm.weight");
  const nn::Embedding& table = *model_.embedding_slot();
  whole_table_ = typeid(table) == typeid(nn::Embedding);
  cut_table_ = dynamic_cast<const parallel::VocabParallelEmbedding*>(&table);
  if (cut_table_ != nullptr && cut_table_->how().sequence_parallel) cut_table_ = nullptr;
  nn::Linear& head = *model_.head_slot();
  head_ = typeid(head) == typeid(nn::TiedLinear) ? Product(table.table().detached()) : Product({&head});
  cache_shape_ = {c.layers, 1, heads_.kv_heads, heads_.head_dim, kv_format_of(model_.dtype())};
}

bool DecodeModel::plain() const {
  const Tensor sum = rows_of(room_.delta, room_.last_x.dim(0));  // of a step
  bool all = head_.recordable(room_.logits);
  if (!whole_table_) {
    const parallel::OneShotReduce* ranks = cut_table_ ? cut_table_->how().one_shot.get() : nullptr;
    all = all && ranks != nullptr && ranks->takes(sum);
  }
  for (const Layer& l : layers_)
    all = all && l.qkv.plain() && l.o.recordable(sum) && l.gate_up.plain() && l.down.recordable(sum);
  return all;
}

void DecodeModel::widen(std::int64_t rows) {
  if (rows <= rows_) return;
  rows_ = 0;  // until there is room
  room_ = {};
  make_room(rows);
  rows_ = rows;
}

void DecodeModel::make_room(std::int64_t rows) {
  const std::int64_t C = model_.config().hidden_size;
  const auto make = [&](std::int64_t r, std::int64_t columns) {
    return Tensor::empty({r, columns}, model_.dtype(), model_.device());
  };
  room_.x = make(rows, C);
  room_.y = make(rows, C);
  room_.delta = make(rows, C);
  room_.qkv = make(rows, (heads_.heads + 2 * heads_.kv_heads) * heads_.head_dim);
  room_.attended = make(rows, heads_.heads * heads_.head_dim);
  room_.gate_up = make(rows, 2 * intermediate_);
  room_.act = make(rows, intermediate_);
  room_.last_x = make(sequences_, C);
  room_.last_y = make(sequences_, C);
  room_.logits = make(sequences_, vocabulary());
  const auto scratch = [&](std::int64_t batch, std::int64_t queries) {
    return kernels::cached_attention_scratch(batch, queries, heads_.heads, heads_.kv_heads, heads_.head_dim);
  };
  const std::int64_t step =
      kernels::decode_attention_scratch(sequences_, heads_.heads, heads_.kv_heads, heads_.head_dim);
  room_.scratch = Tensor::zeros({std::max({scratch(1, rows), scratch(sequences_, 1), step})}, DType::f32,
                                model_.device());
}

void DecodeModel::reach(std::int64_t capacity) {
  if (cos_.defined() && cos_.dim(0) >= capacity) return;
  const auto rows = static_cast<std::int64_t>(
      std::bit_ceil(static_cast<std::uint64_t>(std::max<std::int64_t>(capacity, 64))));
  const Shape shape{rows, heads_.head_dim / 2};
  if (model_.device() == Device::meta) {
    cos_ = Tensor::empty(shape, DType::f32, Device::meta);
    sin_ = Tensor::empty(shape, DType::f32, Device::meta);
    return;
  }
  const Tensor cos = Tensor::empty(shape, DType::f32), sin = Tensor::empty(shape, DType::f32);
  fill_tables(model_.config(), cos, sin);
  cos_ = cos.on(model_.device());
  sin_ = sin.on(model_.device());
}

Tensor DecodeModel::run(const Tensor& ids_R, const Tensor& positions_BT, const Cache& cache,
                        std::int64_t first, bool want_logits, std::int64_t keys) {
  check(cos_.defined() && cos_.dim(0) >= cache.capacity(), "rotary tables reach the cache's end");
  const autograd::NoGradScope no_grad;
  if (steps_ && want_logits && positions_BT.dim(1) == 1)
    return step(ids_R, positions_BT.reshaped({positions_BT.dim(0)}), cache, first, keys);
  if (model_.dtype() == DType::bf16)
    return run_as<bf16>(ids_R, positions_BT, cache, first, want_logits, keys);
  return run_as<float>(ids_R, positions_BT, cache, first, want_logits, keys);
}

// [R, C], to be written by the residual stream.
template <class T>
Tensor DecodeModel::embed(const Tensor& ids_R) {
  nn::Embedding& table = *model_.embedding_slot();
  const std::int64_t R = ids_R.dim(0), C = model_.config().hidden_size;
  const bool cut = cut_table_ != nullptr;
  if (!whole_table_ && !cut) return table.forward(ids_R.reshaped({1, R})).reshaped({R, C});
  const Tensor x = rows_of(room_.x, R);
  const auto piece = cut ? cut_table_->ids() : kernels::VocabPiece{0, table.table().dim(0)};
  kernels::embedding<T>(current_stream(x.device()), table.table().view<T>(), ids_R.view<std::int32_t>(),
                        x.view<T>(), {piece.first, piece.vocabulary});
  if (cut) parallel::reduce_from_tp(x, *cut_table_->how().tp, cut_table_->how().one_shot.get());
  return x;
}

template <class T>
Tensor DecodeModel::attend(const Layer& layer, const Tensor& y_BTC, const Tensor& positions_BT,
                           const kernels::KvView& cache, std::int64_t keys) {
  const std::int64_t B = y_BTC.dim(0), S = y_BTC.dim(1), H = heads_.heads, D = heads_.head_dim;
  Stream& stream = current_stream(y_BTC.device());
  const Tensor qkv = layer.qkv.run(y_BTC, rows_of(room_.qkv, B * S));
  const View<const std::int32_t> positions = positions_BT.view<std::int32_t>();
  kernels::rotary_append<T>(stream, qkv.view<T>(), {H, heads_.kv_heads, D}, cos_.view<float>(),
                            sin_.view<float>(), positions, cache);
  const Tensor q = qkv.sliced(2, 0, H * D);
  const View<const T> q_BTHD(q.view<T>().data, {B, S, H, D}, {q.strides()[0], q.strides()[1], D, 1});
  const Tensor o = rows_of(room_.attended, B * S).reshaped({B, S, H, D});
  kernels::CachedAttentionOptions options;
  options.scale = 1 / std::sqrt(static_cast<double>(D));
  options.window = layer.window;
  options.keys = keys;
  kernels::cached_attention<T>(stream, q_BTHD, cache, positions, o.view<T>(), options,
                               room_.scratch.view<float>());
  return layer.o.run(o.reshaped({B, S, H * D}), rows_of(room_.delta, B * S));
}

template <class T>
void DecodeModel::activate(const Tensor& gate, const Tensor& up, const Tensor& act) const {
  const std::string& name = model_.config().activation;
  Stream& stream = current_stream(act.device());
  if (name == "silu") return kernels::swiglu<T>(stream, gate.view<T>(), up.view<T>(), act.view<T>());
  const auto kind = name == "gelu" ? kernels::Gelu::erf : kernels::Gelu::tanh;
  kernels::gelu<T>(stream, gate.view<T>(), act.view<T>(), kind);
  kernels::mul<T>(stream, act.view<T>(), up.view<T>(), act.view<T>());
}

template <class T>
Tensor DecodeModel::feed_forward(const Layer& layer, const Tensor& y_BTC) {
  const std::int64_t B = y_BTC.dim(0), S = y_BTC.dim(1), F = intermediate_;
  const Tensor gate_up = layer.gate_up.run(y_BTC, rows_of(room_.gate_up, B * S)).reshaped({B * S, 2 * F});
  const Tensor act = rows_of(room_.act, B * S);
  activate<T>(gate_up.sliced(1, 0, F), gate_up.sliced(1, F, 2 * F), act);
  return layer.down.run(act.reshaped({B, S, F}), rows_of(room_.delta, B * S));
}

// Of each sequence's last token.
template <class T>
Tensor DecodeModel::head(const Tensor& x_BTC, const Tensor& delta_BTC) {
  const std::int64_t B = x_BTC.dim(0), last = x_BTC.dim(1) - 1, C = x_BTC.dim(2);
  const auto rows = [&](const Tensor& t) {
    const Tensor part = t.sliced(1, last, last + 1);
    return View<const T>(part.view<T>().data, {B, C}, {t.strides()[0], 1});
  };
  const Tensor sum = rows_of(room_.last_x, B), y = rows_of(room_.last_y, B);
  kernels::add_rms_norm<T>(current_stream(y.device()), rows(x_BTC), rows(delta_BTC), norm_.view<T>(),
                           sum.view<T>(), y.view<T>(), View<float>(), model_.config().rms_norm_eps);
  return head_.run(y.reshaped({B, 1, C}), rows_of(room_.logits, B)).reshaped({B, -1});
}

template <class T>
Tensor DecodeModel::run_as(const Tensor& ids_R, const Tensor& positions_BT, const Cache& cache,
                           std::int64_t first, bool want_logits, std::int64_t keys) {
  const std::int64_t B = positions_BT.dim(0), S = positions_BT.dim(1), R = B * S;
  const std::int64_t C = model_.config().hidden_size;
  const double eps = model_.config().rms_norm_eps;
  Stream& stream = current_stream(model_.device());
  const Tensor x = embed<T>(ids_R), y = rows_of(room_.y, R);
  const Tensor y_BTC = y.reshaped({B, S, C});
  Tensor delta;
  const auto normalise = [&](const Tensor& weight) {
    if (!delta.defined()) {
      kernels::rms_norm<T>(stream, x.view<T>(), weight.view<T>(), y.view<T>(), View<float>(), eps);
    } else {
      kernels::add_rms_norm<T>(stream, x.view<T>(), delta.reshaped({R, C}).view<T>(), weight.view<T>(),
                               x.view<T>(), y.view<T>(), View<float>(), eps);
    }
  };
  for (std::size_t l = 0; l < layers_.size(); ++l) {
    normalise(layers_[l].attention_norm);
    delta =
        attend<T>(layers_[l], y_BTC, positions_BT, cache.view(static_cast<std::int64_t>(l), first, B), keys);
    normalise(layers_[l].mlp_norm);
    delta = feed_forward<T>(layers_[l], y_BTC);
  }
  return want_logits ? head<T>(x.reshaped({B, S, C}), delta.reshaped({B, S, C})) : Tensor();
}

template Tensor DecodeModel::embed<bf16>(const Tensor&);
template void DecodeModel::activate<bf16>(const Tensor&, const Tensor&, const Tensor&) const;

}  // namespace ridge::inference
