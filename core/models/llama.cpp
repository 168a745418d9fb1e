#include "core/models/llama.h"

#include <cmath>

#include "core/autograd.h"
#include "core/base/stream.h"
#include "core/ops/activation.h"
#include "core/ops/attention.h"
#include "core/ops/elementwise.h"
#include "core/ops/norm.h"
#include "core/ops/shape.h"
#include "core/random_state.h"
#include "kernels/fill.h"

namespace ridge::models {
namespace {

std::unique_ptr<nn::Linear> dense(std::int64_t in, std::int64_t out, bool bias, DType dtype, Device device) {
  return std::make_unique<nn::DenseLinear>(in, out, bias, dtype, device);
}

}  // namespace

// The residual stream on its way: its value is x + delta, where there is a delta.
struct Llama::Residual {
  Tensor x, delta = {};

  Tensor sum() const { return delta.defined() ? ops::add(x, delta) : x; }

  // The stream's sum becomes x, and what is normalised of it is returned.
  Tensor normalise(const Tensor& weight_C, double eps) {
    if (!delta.defined()) return ops::rms_norm(x, weight_C, eps);
    auto [sum, y] = ops::add_rms_norm(x, delta, weight_C, eps);
    *this = {sum};
    return y;
  }
};

// One transformer block. H query heads, G key-value heads, D head dim.
// Heads are counted by the layers at hand, which may be a rank's piece of larger ones.
struct Llama::Block {
  // What all blocks of a pass share.
  struct Surroundings {
    nn::RotaryTable::Tables rotary;
    std::shared_ptr<const nn::SelfAttention> attention;
    nn::KvCache* cache;
    bool deterministic;
  };

  Tensor attention_norm, mlp_norm;  // [C]
  std::unique_ptr<nn::Linear> q, k, v, o;
  std::unique_ptr<nn::Linear> gate, up, down;

  Block(const ModelConfig& c, DType dtype, Device device)
      : o(dense(c.heads * c.head_dim, c.hidden_size, c.output_bias, dtype, device)),
        down(dense(c.intermediate_size, c.hidden_size, c.mlp_bias, dtype, device)) {
    const std::int64_t kv = c.kv_heads * c.head_dim;
    auto qkv = nn::dense_group(c.hidden_size, {c.heads * c.head_dim, kv, kv}, c.qkv_bias, dtype, device);
    auto gate_up =
        nn::dense_group(c.hidden_size, {c.intermediate_size, c.intermediate_size}, c.mlp_bias, dtype, device);
    q = std::move(qkv[0]);
    k = std::move(qkv[1]);
    v = std::move(qkv[2]);
    gate = std::move(gate_up[0]);
    up = std::move(gate_up[1]);
    const PurposeScope purpose(Purpose::weights);
    attention_norm = Tensor::full({c.hidden_size}, 1, dtype, device);
    mlp_norm = Tensor::full({c.hidden_size}, 1, dtype, device);
  }

  ops::HeadCounts heads(const ModelConfig& c) const {
    return {q->out_features() / c.head_dim, k->out_features() / c.head_dim, c.head_dim};
  }

  // [B, T, H D]
  static Tensor attend_cached(const ops::HeadCounts& n, std::int64_t layer, const Tensor& qkv,
                              const nn::RotaryTable::Tables& rotary, const kernels::AttentionOptions& options,
                              nn::KvCache& cache) {
    const std::int64_t B = qkv.dim(0), T = qkv.dim(1), H = n.heads, G = n.kv_heads, past = cache.length();
    const Tensor cos = rotary.cos.sliced(0, past, past + T), sin = rotary.sin.sliced(0, past, past + T);
    const Tensor packed = ops::reshape(qkv, {B, T, H + 2 * G, n.head_dim});
    const Tensor q_BTHD = ops::rotary(ops::slice(packed, 2, 0, H), cos, sin);
    cache.append(layer, ops::rotary(ops::slice(packed, 2, H, H + G), cos, sin),
                 ops::slice(packed, 2, H + G, H + 2 * G));
    const Tensor y = ops::attention(q_BTHD, cache.keys(layer, T), cache.values(layer, T), options);
    return ops::reshape(y, {B, T, H * n.head_dim});
  }

  Tensor attend(const ModelConfig& c, std::int64_t layer, const Tensor& x_BTC, const Surroundings& s) const {
    kernels::AttentionOptions options;
    options.scale = 1 / std::sqrt(static_cast<double>(c.head_dim));
    options.window = c.window(layer);
    options.deterministic = s.deterministic;
    const Tensor qkv = nn::forward_group({q.get(), k.get(), v.get()}, x_BTC);
    return o->forward(s.cache != nullptr ? attend_cached(heads(c), layer, qkv, s.rotary, options, *s.cache)
                                         : s.attention->forward(qkv, heads(c), s.rotary, options));
  }

  Tensor feed_forward(const ModelConfig& c, const Tensor& x_BTC) const {
    if (c.activation == "silu")
      return down->forward(ops::swiglu_packed(nn::forward_group({gate.get(), up.get()}, x_BTC)));
    const Tensor g = gate->forward(x_BTC), u = up->forward(x_BTC);
    return down->forward(ops::mul(c.activation == "gelu" ? ops::gelu(g) : ops::gelu_tanh(g), u));
  }

  Residual forward(const ModelConfig& c, std::int64_t layer, Residual residual, const Surroundings& s) const {
    const Tensor a = residual.normalise(attention_norm, c.rms_norm_eps);
    residual.delta = attend(c, layer, a, s);
    const Tensor m = residual.normalise(mlp_norm, c.rms_norm_eps);
    residual.delta = feed_forward(c, m);
    return residual;
  }

  std::vector<nn::LinearSlot> linears(const std::string& path) {
    return {{path + ".self_attn.q_proj", &q}, {path + ".self_attn.k_proj", &k},
            {path + ".self_attn.v_proj", &v}, {path + ".self_attn.o_proj", &o},
            {path + ".mlp.gate_proj", &gate}, {path + ".mlp.up_proj", &up},
            {path + ".mlp.down_proj", &down}};
  }

  void collect(const std::string& path, nn::Parameters& out) {
    out.push_back({path + ".input_layernorm.weight", &attention_norm});
    for (const nn::LinearSlot& linear : linears(path)) (*linear.slot)->collect(linear.path, out);
    out.push_back({path + ".post_attention_layernorm.weight", &mlp_norm});
  }
};

Llama::Llama(ModelConfig config, DType dtype, Device device)
    : config_(std::move(config)),
      dtype_(dtype),
      device_(device),
      rotary_(config_.rope),
      attention_(std::make_shared<nn::SelfAttention>()) {
  const PurposeScope purpose(Purpose::weights);
  embedding_ = std::make_unique<nn::Embedding>(
      Tensor::empty({config_.vocab_size, config_.hidden_size}, dtype, device));
  for (std::int64_t layer = 0; layer < config_.layers; ++layer) {
    blocks_.push_back(std::make_unique<Block>(config_, dtype, device));
  }
  norm_ = Tensor::full({config_.hidden_size}, 1, dtype, device);
  if (config_.tied) {
    head_ = std::make_unique<nn::TiedLinear>(embedding_->table());
  } else {
    head_ = dense(config_.hidden_size, config_.vocab_size, false, dtype, device);
  }
}

Llama::~Llama() = default;

Llama::Residual Llama::blocks(LayerRange range, Residual residual, nn::KvCache* cache) {
  const std::int64_t tokens = residual.x.dim(1) * sequence_pieces_;
  const auto whole = cache ? cache->length() + tokens : attention_->positions(tokens);
  const Block::Surroundings s{rotary_.get(whole, device_), attention_, cache, deterministic_};
  const autograd::CheapRecomputeScope cheap(recompute_ == Recompute::selective && cache == nullptr);
  for (std::int64_t layer = range.first; layer < range.end; ++layer) {
    const auto unit = static_cast<std::size_t>(layer) + 1;
    const auto run = [this, layer, unit, s](Residual r) {
      random_state().next_call = static_cast<std::uint64_t>(unit) << 32;  // whatever blocks ran before
      r.x = enter(unit, r.x);
      r = blocks_.at(unit - 1)->forward(config_, layer, std::move(r), s);
      r.delta = leave(unit, r.delta);
      return r;
    };
    if (recompute_ == Recompute::blocks && cache == nullptr) {
      residual = {autograd::recompute([run](const std::vector<Tensor>& x) { return run({x[0]}).sum(); },
                                      {residual.sum()})};
    } else {
      residual = run(residual);
    }
  }
  return residual;
}

Tensor Llama::final_norm(Residual residual) {
  residual.x = enter(head_unit(), residual.x);
  return residual.normalise(norm_, config_.rms_norm_eps);
}

Tensor Llama::embed(const Tensor& ids_BT) {
  check(ids_BT.ndim() == 2, "ids of [B, T]");
  const Tensor y = embedding_->forward(enter(0, ids_BT.on(device_)));
  return config_.tied && head_ != nullptr ? y : leave(0, y);  // else the head leaves it
}

Tensor Llama::run_blocks(LayerRange range, const Tensor& x_BTC) {
  return blocks(range, {x_BTC}, nullptr).sum();
}

Tensor Llama::finish_loss(const Tensor& x_BTC, const Tensor& targets_BT, double scale) {
  const Tensor h_BTC = final_norm({x_BTC});
  return leave(head_unit(),
               head_->cross_entropy(h_BTC, targets_BT.on(device_).as_contiguous().reshaped({-1}), scale));
}

Tensor Llama::finish_token_losses(const Tensor& x_BTC, const Tensor& targets_BT) {
  const autograd::NoGradScope no_grad;
  const Tensor h_BTC = final_norm({x_BTC});
  return leave(head_unit(),
               head_->token_losses(h_BTC, targets_BT.on(device_).as_contiguous().reshaped({-1})));
}

Tensor Llama::hidden(const Tensor& ids_BT, nn::KvCache* cache) {
  const Residual residual = blocks({0, config_.layers}, {embed(ids_BT)}, cache);
  if (cache != nullptr) cache->advance(ids_BT.dim(1));
  return final_norm(residual);
}

Tensor Llama::logits(const Tensor& ids_BT, nn::KvCache* cache) {
  return leave(head_unit(), head_->forward(hidden(ids_BT, cache)));
}

Tensor Llama::last_logits(const Tensor& ids_BT, nn::KvCache* cache) {
  const Tensor h_BTC = hidden(ids_BT, cache);
  const Tensor last_BC =
      ops::reshape(ops::slice(h_BTC, 1, h_BTC.dim(1) - 1, h_BTC.dim(1)), {-1, config_.hidden_size});
  return leave(head_unit(), head_->forward(last_BC));
}

Tensor Llama::loss(const Tensor& ids_BT, const Tensor& targets_BT, double scale) {
  const Tensor h_BTC = hidden(ids_BT);
  return leave(head_unit(),
               head_->cross_entropy(h_BTC, targets_BT.on(device_).as_contiguous().reshaped({-1}), scale));
}

Tensor Llama::token_losses(const Tensor& ids_BT, const Tensor& targets_BT) {
  const autograd::NoGradScope no_grad;
  const Tensor h_BTC = hidden(ids_BT);
  return leave(head_unit(),
               head_->token_losses(h_BTC, targets_BT.on(device_).as_contiguous().reshaped({-1})));
}

void Llama::keep(const std::vector<LayerRange>& ranges) {
  bool first = false, last = false;
  std::vector<bool> kept(blocks_.size(), false);
  for (const LayerRange& range : ranges) {
    first = first || range.first == 0;
    last = last || range.end == config_.layers;
    for (std::int64_t l = range.first; l < range.end; ++l) kept.at(static_cast<std::size_t>(l)) = true;
  }
  for (std::size_t l = 0; l < blocks_.size(); ++l) {
    if (!kept[l]) blocks_[l].reset();
  }
  if (!last) {
    norm_ = {};
    head_.reset();
  }
  if (!first && !(last && config_.tied)) embedding_.reset();
}

std::vector<nn::Unit> Llama::units() {
  std::vector<nn::Unit> all(blocks_.size() + 2);
  all[0].name = "model.embed_tokens";
  if (embedding_ != nullptr) all[0].parameters = {{"model.embed_tokens.weight", &embedding_->table()}};
  for (std::size_t layer = 0; layer < blocks_.size(); ++layer) {
    nn::Unit& unit = all[layer + 1];
    unit.name = fmt::format("model.layers.{}", layer);
    if (blocks_[layer] != nullptr) blocks_[layer]->collect(unit.name, unit.parameters);
  }
  all.back().name = "lm_head";
  nn::Parameters& end = all[head_unit()].parameters;
  if (norm_.defined()) end.push_back({"model.norm.weight", &norm_});
  if (head_ != nullptr) head_->collect("lm_head", end);
  if (config_.tied) all.pop_back();
  return all;
}

nn::Parameters Llama::parameters() {
  nn::Parameters all, end;
  for (nn::Unit& unit : units()) {
    for (nn::Parameter& p : unit.parameters) {
      const bool last = p.name == "model.norm.weight" || p.name.starts_with("lm_head.");
      (last ? end : all).push_back(std::move(p));
    }
  }
  all.insert(all.end(), end.begin(), end.end());
  return all;
}

std::vector<nn::LinearSlot> Llama::linears() {
  std::vector<nn::LinearSlot> all;
  for (std::size_t layer = 0; layer < blocks_.size(); ++layer) {
    if (blocks_[layer] == nullptr) continue;
    for (nn::LinearSlot& slot : blocks_[layer]->linears(fmt::format("model.layers.{}", layer)))
      all.push_back(std::move(slot));
  }
  if (!config_.tied && head_ != nullptr) all.push_back({"lm_head", &head_});
  return all;
}

void initialize_parameter(const ModelConfig& config, const nn::Parameter& parameter, std::uint64_t index,
                          std::uint64_t seed) {
  const RandomKey key{mix_seed(seed, 0), index};
  const Tensor& value = *parameter.value;
  Stream& stream = current_stream(value.device());
  visit_compute(value.dtype(), [&]<class T>(std::type_identity<T>) {
    if (value.ndim() == 2) {
      kernels::normal<T>(stream, value.view<T>(), 0, config.initializer_range, key);
    } else {
      kernels::fill<T>(stream, value.view<T>(), parameter.name.ends_with(".bias") ? 0 : 1);
    }
  });
}

void Llama::initialize(std::uint64_t seed) {
  std::uint64_t index = 0;
  for (const nn::Parameter& p : parameters()) initialize_parameter(config_, p, index++, seed);
}

void Llama::adopt(Device device) {
  for (const nn::Parameter& p : parameters()) {
    if (p.value->device() != device)
      fail("{} is on {}, not {}", p.name, name_of(p.value->device()), name_of(device));
  }
  device_ = device;
}

nn::KvCache Llama::make_cache(std::int64_t batch, std::int64_t capacity) const {
  const std::int64_t kv_heads = blocks_.at(0)->heads(config_).kv_heads;  // those held here
  return nn::KvCache(config_.layers, batch, capacity, kv_heads, config_.head_dim, dtype_, device_);
}

}  // namespace ridge::models
