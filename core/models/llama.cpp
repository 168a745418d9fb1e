#include "core/models/llama.h"

#include <cmath>

#include "core/autograd.h"
#include "core/base/stream.h"
#include "core/ops/activation.h"
#include "core/ops/attention.h"
#include "core/ops/elementwise.h"
#include "core/ops/embedding.h"
#include "core/ops/norm.h"
#include "core/ops/shape.h"
#include "kernels/fill.h"

namespace ridge::models {
namespace {

std::unique_ptr<nn::Linear> dense(std::int64_t in, std::int64_t out, bool bias, DType dtype, Device device) {
  return std::make_unique<nn::DenseLinear>(in, out, bias, dtype, device);
}

// The residual stream on its way: its value is x + delta, where there is a delta.
struct Residual {
  Tensor x, delta = {};

  Tensor sum() const { return delta.defined() ? ops::add(x, delta) : x; }
};

// The stream's sum becomes x, and what is normalised of it is returned.
Tensor normalise(Residual& residual, const Tensor& weight_C, double eps) {
  if (!residual.delta.defined()) return ops::rms_norm(residual.x, weight_C, eps);
  auto [sum, y] = ops::add_rms_norm(residual.x, residual.delta, weight_C, eps);
  residual = {sum};
  return y;
}

}  // namespace

// One transformer block. H query heads, G key-value heads, D head dim.
struct Llama::Block {
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

  // [B, T, H D]
  static Tensor attend_cached(const ModelConfig& c, std::int64_t layer, const Tensor& qkv, const Tensor& cos,
                              const Tensor& sin, const kernels::AttentionOptions& options,
                              nn::KvCache& cache) {
    const std::int64_t B = qkv.dim(0), T = qkv.dim(1), H = c.heads, G = c.kv_heads;
    const Tensor packed = ops::reshape(qkv, {B, T, H + 2 * G, c.head_dim});
    const Tensor q_BTHD = ops::rotary(ops::slice(packed, 2, 0, H), cos, sin);
    cache.append(layer, ops::rotary(ops::slice(packed, 2, H, H + G), cos, sin),
                 ops::slice(packed, 2, H + G, H + 2 * G));
    const Tensor y = ops::attention(q_BTHD, cache.keys(layer, T), cache.values(layer, T), options);
    return ops::reshape(y, {B, T, H * c.head_dim});
  }

  Tensor attend(const ModelConfig& c, std::int64_t layer, const Tensor& x_BTC,
                const nn::RotaryTable::Tables& rotary, nn::KvCache* cache, bool deterministic) const {
    const std::int64_t T = x_BTC.dim(1), past = cache ? cache->length() : 0;
    const Tensor cos = rotary.cos.sliced(0, past, past + T), sin = rotary.sin.sliced(0, past, past + T);
    kernels::AttentionOptions options;
    options.scale = 1 / std::sqrt(static_cast<double>(c.head_dim));
    options.window = c.window(layer);
    options.deterministic = deterministic;
    const Tensor qkv = nn::forward_group({q.get(), k.get(), v.get()}, x_BTC);
    const Tensor y = cache != nullptr
                         ? attend_cached(c, layer, qkv, cos, sin, options, *cache)
                         : ops::rotary_attention(qkv, {c.heads, c.kv_heads, c.head_dim}, cos, sin, options);
    return o->forward(y);
  }

  Tensor feed_forward(const ModelConfig& c, const Tensor& x_BTC) const {
    if (c.activation == "silu")
      return down->forward(ops::swiglu_packed(nn::forward_group({gate.get(), up.get()}, x_BTC)));
    const Tensor g = gate->forward(x_BTC), u = up->forward(x_BTC);
    return down->forward(ops::mul(c.activation == "gelu" ? ops::gelu(g) : ops::gelu_tanh(g), u));
  }

  Residual forward(const ModelConfig& c, std::int64_t layer, Residual residual,
                   const nn::RotaryTable::Tables& rotary, nn::KvCache* cache, bool deterministic) const {
    const Tensor a = normalise(residual, attention_norm, c.rms_norm_eps);
    residual.delta = attend(c, layer, a, rotary, cache, deterministic);
    const Tensor m = normalise(residual, mlp_norm, c.rms_norm_eps);
    residual.delta = feed_forward(c, m);
    return residual;
  }

  std::vector<nn::LinearSlot> linears(const std::string& path) {
    return {{path + ".self_attn.q_proj", &q}, {path + ".self_attn.k_proj", &k},
            {path + ".self_attn.v_proj", &v}, {path + ".self_attn.o_proj", &o},
            {path + ".mlp.gate_proj", &gate}, {path + ".mlp.up_proj", &up},
            {path + ".mlp.down_proj", &down}};
  }
};

Llama::Llama(ModelConfig config, DType dtype, Device device)
    : config_(std::move(config)), dtype_(dtype), device_(device), rotary_(config_.rope) {
  const PurposeScope purpose(Purpose::weights);
  embedding_ = Tensor::empty({config_.vocab_size, config_.hidden_size}, dtype, device);
  for (std::int64_t layer = 0; layer < config_.layers; ++layer) {
    blocks_.push_back(std::make_unique<Block>(config_, dtype, device));
  }
  norm_ = Tensor::full({config_.hidden_size}, 1, dtype, device);
  if (config_.tied) {
    head_ = std::make_unique<nn::TiedLinear>(embedding_);
  } else {
    head_ = dense(config_.hidden_size, config_.vocab_size, false, dtype, device);
  }
}

Llama::~Llama() = default;

Tensor Llama::hidden(const Tensor& ids_BT, nn::KvCache* cache) {
  check(ids_BT.ndim() == 2, "ids of [B, T]");
  const autograd::CheapRecomputeScope cheap(recompute_ == Recompute::selective && cache == nullptr);
  const auto tables = rotary_.get((cache ? cache->length() : 0) + ids_BT.dim(1), device_);
  Residual residual{ops::embedding(embedding_, ids_BT.on(device_))};
  for (std::int64_t layer = 0; layer < config_.layers; ++layer) {
    const Block& block = *blocks_[static_cast<std::size_t>(layer)];
    const auto run = [this, &block, layer, tables, cache](Residual r) {
      return block.forward(config_, layer, std::move(r), tables, cache, deterministic_);
    };
    if (recompute_ == Recompute::blocks && cache == nullptr) {
      residual = {autograd::recompute([run](const std::vector<Tensor>& x) { return run({x[0]}).sum(); },
                                      {residual.x})};
    } else {
      residual = run(residual);
    }
  }
  if (cache != nullptr) cache->advance(ids_BT.dim(1));
  return normalise(residual, norm_, config_.rms_norm_eps);
}

Tensor Llama::logits(const Tensor& ids_BT, nn::KvCache* cache) {
  return head_->forward(hidden(ids_BT, cache));
}

Tensor Llama::last_logits(const Tensor& ids_BT, nn::KvCache* cache) {
  const Tensor h_BTC = hidden(ids_BT, cache);
  const Tensor last_BC =
      ops::reshape(ops::slice(h_BTC, 1, h_BTC.dim(1) - 1, h_BTC.dim(1)), {-1, config_.hidden_size});
  return head_->forward(last_BC);
}

Tensor Llama::loss(const Tensor& ids_BT, const Tensor& targets_BT, double scale) {
  const Tensor h_RC = ops::reshape(hidden(ids_BT), {-1, config_.hidden_size});
  return head_->cross_entropy(h_RC, targets_BT.on(device_).as_contiguous().reshaped({-1}), scale);
}

Tensor Llama::token_losses(const Tensor& ids_BT, const Tensor& targets_BT) {
  const autograd::NoGradScope no_grad;
  const Tensor h_RC = hidden(ids_BT).reshaped({-1, config_.hidden_size});
  return head_->token_losses(h_RC, targets_BT.on(device_).as_contiguous().reshaped({-1}));
}

nn::Parameters Llama::parameters() {
  nn::Parameters all{{"model.embed_tokens.weight", &embedding_}};
  for (std::size_t layer = 0; layer < blocks_.size(); ++layer) {
    const std::string path = fmt::format("model.layers.{}", layer);
    Block& block = *blocks_[layer];
    all.push_back({path + ".input_layernorm.weight", &block.attention_norm});
    for (const nn::LinearSlot& linear : block.linears(path)) (*linear.slot)->collect(linear.path, all);
    all.push_back({path + ".post_attention_layernorm.weight", &block.mlp_norm});
  }
  all.push_back({"model.norm.weight", &norm_});
  head_->collect("lm_head", all);
  return all;
}

std::vector<nn::LinearSlot> Llama::linears() {
  std::vector<nn::LinearSlot> all;
  for (std::size_t layer = 0; layer < blocks_.size(); ++layer) {
    for (nn::LinearSlot& slot : blocks_[layer]->linears(fmt::format("model.layers.{}", layer)))
      all.push_back(std::move(slot));
  }
  if (!config_.tied) all.push_back({"lm_head", &head_});
  return all;
}

void Llama::initialize(std::uint64_t seed) {
  std::uint64_t index = 0;
  for (const nn::Parameter& p : parameters()) {
    const RandomKey key{mix_seed(seed, 0), index++};
    Stream& stream = current_stream(device_);
    visit_compute(dtype_, [&]<class T>(std::type_identity<T>) {
      const bool matrix = p.value->ndim() == 2;
      const bool bias = p.name.ends_with(".bias");
      if (matrix) {
        kernels::normal<T>(stream, p.value->view<T>(), 0, config_.initializer_range, key);
      } else {
        kernels::fill<T>(stream, p.value->view<T>(), bias ? 0 : 1);
      }
    });
  }
}

void Llama::adopt(Device device) {
  for (const nn::Parameter& p : parameters()) {
    if (p.value->device() != device)
      fail("{} is on {}, not {}", p.name, name_of(p.value->device()), name_of(device));
  }
  device_ = device;
}

nn::KvCache Llama::make_cache(std::int64_t batch, std::int64_t capacity) const {
  return nn::KvCache(config_.layers, batch, capacity, config_.kv_heads, config_.head_dim, dtype_, device_);
}

}  // namespace ridge::models
