// One rank and several ranks of tp on the same model, batch and weights: losses and whole gradients.
#pragma once

#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "core/autograd.h"
#include "core/models/llama.h"
#include "core/random_state.h"
#include "kernels/fill.h"
#include "lora/adapter.h"
#include "parallel/tensor_parallel.h"
#include "tests/core/models/reference.h"

namespace ridge::test {

/// A model that is quick, with sizes that tell its dimensions apart.
inline models::ModelConfig tiny_config() {
  models::ModelConfig c;
  c.model_type = "llama";
  c.vocab_size = 37;
  c.hidden_size = 20;
  c.intermediate_size = 48;
  c.layers = 2;
  c.heads = 8;
  c.kv_heads = 2;
  c.head_dim = 4;
  c.max_position = 64;
  c.rms_norm_eps = 1e-5;
  c.activation = "silu";
  c.rope.head_dim = c.head_dim;
  c.rope.max_position = c.max_position;
  return c;
}

struct TpCase {
  std::string name;
  models::ModelConfig config = tiny_config();
  bool lora = false;
  double dropout = 0;
  std::vector<std::string> targets = {"all-linear"};
  DType dtype = DType::f64;
  models::Recompute recompute = models::Recompute::none;
  bool defer = false;  // gradients of weights
  std::int64_t batch = 2, tokens = 16;
};

struct TpLayout {
  int tp = 1;
  bool sequence_parallel = false;
  int chunks = 1;
  std::function<std::shared_ptr<parallel::PeerGroup>(parallel::Communicator& tp)> peers = nullptr;
  std::function<std::shared_ptr<parallel::OneShotReduce>(parallel::Communicator& tp)> one_shot = nullptr;
};

using Tensors = std::map<std::string, Tensor>;

/// What a run gives: the loss, each token's, logits, and whole gradients.
struct TpResult {
  double loss = 0;
  Tensor token_losses, logits;
  Tensors gradients;
};

inline bool trains(const TpCase& c, const std::string& name) {
  return !c.lora || lora::is_adapter_parameter(name);
}

inline void add_adapters(models::Llama& model, const TpCase& c, Device device) {
  if (!c.lora) return;
  lora::LoraConfig config;
  config.rank = 3;
  config.alpha = 5;
  config.dropout = c.dropout;
  config.targets = c.targets;
  lora::add_adapters(model.linears(), config, 5, device);
}

inline std::pair<Tensor, Tensor> batch_of(const TpCase& c) {
  std::vector<std::int32_t> ids, targets;
  for (std::int64_t i = 0; i < c.batch * c.tokens; ++i) {
    ids.push_back(static_cast<std::int32_t>((i * i * 7 + 3 * i) % c.config.vocab_size));
    targets.push_back(i % 7 == 3 ? -100 : static_cast<std::int32_t>((i * 11 + 5) % c.config.vocab_size));
  }
  return {Tensor::from(ids, {c.batch, c.tokens}), Tensor::from(targets, {c.batch, c.tokens})};
}

/// Whole weights, all of them random: biases, norms and lora_B too.
inline Tensors weights_of(const TpCase& c) {
  models::Llama model(c.config, c.dtype, Device::cpu);
  add_adapters(model, c, Device::cpu);
  Tensors all;
  std::uint64_t index = 0;
  for (const nn::Parameter& p : model.parameters()) {
    const Tensor value = Tensor::empty(p.value->shape(), p.value->dtype());
    visit_compute(value.dtype(), [&]<class T>(std::type_identity<T>) {
      kernels::normal<T>(current_stream(Device::cpu), value.view<T>(),
                         p.name.find("norm") != std::string::npos ? 1 : 0, 0.2, {9, index++});
    });
    all[p.name] = value;
  }
  return all;
}

inline TpResult run(models::Llama& model, const TpCase& c) {
  const auto [ids, targets] = batch_of(c);
  TpResult out;
  model.set_recompute(c.recompute);
  for (const nn::Parameter& p : model.parameters()) autograd::set_requires_grad(*p.value, trains(c, p.name));
  random_state() = {3, 0, 0, 0};
  const Tensor loss = model.loss(ids, targets, 1.0 / static_cast<double>(ids.numel()));
  out.loss = loss.item();
  autograd::DeferWeightGradients::Queue queue;
  if (c.defer) {
    const autograd::DeferWeightGradients defer(queue);
    autograd::backward(loss);
    EXPECT_FALSE(queue.empty());
  } else {
    autograd::backward(loss);
  }
  for (const auto& gradient : queue) gradient();
  for (const nn::Parameter& p : model.parameters()) {
    if (trains(c, p.name)) out.gradients[p.name] = autograd::grad_of(*p.value);
  }
  const autograd::NoGradScope no_grad;
  out.token_losses = model.token_losses(ids, targets);
  out.logits = model.logits(ids);
  return out;
}

inline TpResult run_whole(const TpCase& c, const Tensors& weights) {
  models::Llama model(c.config, c.dtype, Device::meta);
  add_adapters(model, c, Device::meta);
  for (const nn::Parameter& p : model.parameters()) *p.value = weights.at(p.name).contiguous_copy();
  model.adopt(Device::cpu);
  return run(model, c);
}

/// Adds a piece to the whole: parts of a sum are summed, the first of equal copies is taken.
inline void assemble(const Tensor& piece, const parallel::Placement& place, const Tensor& whole) {
  if (place.copies > 1 && !place.partial && place.copy != 0) return;
  const Tensor into = place.dim < 0 ? whole : whole.sliced(place.dim, place.begin, place.end);
  const auto add = values_of(piece), old = values_of(into);
  std::vector<double> sum(add.size());
  for (std::size_t i = 0; i < add.size(); ++i) sum[i] = add[i] + old[i];
  into.copy_from(Tensor::from(sum, into.shape()));
}

/// A rank's model with its pieces of the weights, and where they lie.
struct TpModel {
  std::unique_ptr<models::Llama> model;
  std::map<std::string, parallel::Placement> placements;

  TpModel(const TpCase& c, const Tensors& weights, const TpLayout& layout, parallel::Communicator& tp,
          Device device = Device::cpu, const std::vector<models::LayerRange>& stages = {})
      : model(std::make_unique<models::Llama>(c.config, c.dtype, Device::meta)) {
    if (!stages.empty()) model->keep(stages);
    placements = parallel::apply_tensor_parallel(
        *model, tp,
        {layout.sequence_parallel, layout.chunks, layout.peers ? layout.peers(tp) : nullptr,
         layout.one_shot ? layout.one_shot(tp) : nullptr});
    add_adapters(*model, c, Device::meta);
    for (const nn::Parameter& p : model->parameters()) {
      if (lora::is_adapter_parameter(p.name)) {
        const std::string linear = p.name.substr(0, p.name.find(".lora_")) + ".weight";
        placements[p.name] = parallel::adapter_placement(
            placements.at(linear), p.name.ends_with("lora_A.weight"), tp.size(), tp.rank());
      }
      const parallel::Placement& place = placements.at(p.name);
      const Tensor& whole = weights.at(p.name);
      EXPECT_EQ(p.value->shape(), place.local_shape(whole.shape())) << p.name;
      *p.value = (place.dim < 0 ? whole : whole.sliced(place.dim, place.begin, place.end))
                     .contiguous_copy()
                     .on(device);
    }
    model->adopt(device);
  }
};

/// Every rank's value is the same.
inline void expect_agreement(double value, parallel::Communicator& host) {
  std::vector<double> extremes{value, -value};
  host.all_reduce(std::span<double>(extremes), parallel::Reduce::max);
  EXPECT_EQ(extremes[0], value);
  EXPECT_EQ(extremes[1], -value);
}

/// What all ranks give together; each gets it. `host` carries what is compared.
inline TpResult run_rank(const TpCase& c, const Tensors& weights, const TpLayout& layout,
                         parallel::Communicator& tp, parallel::Communicator& host, Device device) {
  const TpModel mine(c, weights, layout, tp, device);
  TpResult result = run(*mine.model, c);
  expect_agreement(result.loss, host);
  expect_agreement(values_of(result.logits).back(), host);
  Tensors whole;
  for (const auto& [name, gradient] : result.gradients) {
    const Tensor sum = Tensor::zeros(weights.at(name).shape(), DType::f64);
    EXPECT_TRUE(gradient.defined()) << name;
    if (gradient.defined()) assemble(gradient, mine.placements.at(name), sum);
    host.all_reduce(sum.span<double>());
    whole[name] = sum;
  }
  result.gradients = whole;
  return result;
}

/// The greatest error of loss, losses, logits and gradients, each as a part of its own greatest value; names
/// the worst.
inline double worst_of(const TpResult& got, const TpResult& want, std::string& where) {
  double worst = -1;
  const auto see = [&](const std::string& name, double error) {
    if (error <= worst) return;
    worst = error;
    where = name;
  };
  see("loss", std::fabs(got.loss - want.loss) / std::fabs(want.loss));
  see("token losses", normalized_error(got.token_losses, want.token_losses));
  see("logits", normalized_error(got.logits, want.logits));
  EXPECT_EQ(got.gradients.size(), want.gradients.size());
  for (const auto& [name, gradient] : want.gradients)
    see(name, normalized_error(got.gradients.count(name) ? got.gradients.at(name) : Tensor(), gradient));
  return worst;
}

}  // namespace ridge::test
