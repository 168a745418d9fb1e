// The Llama family: Llama 2 and 3, Qwen2 and 2.5, Mistral. It knows nothing of meshes, adapters or weight
// formats.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "core/models/config.h"
#include "core/nn/kv_cache.h"
#include "core/nn/linear.h"
#include "core/nn/module.h"

namespace ridge::models {

/// Nothing; norms and activations (cheap to compute, dear to keep); all but the input of each block.
enum class Recompute { none, selective, blocks };

/// B sequences, T tokens, C channels, V vocabulary. Ids and targets may lie on another device than the model.
class Llama {
 public:
  /// Weights are uninitialised: fill them with initialize() or load_weights().
  Llama(ModelConfig config, DType dtype, Device device);
  ~Llama();
  Llama(const Llama&) = delete;
  Llama& operator=(const Llama&) = delete;

  /// Last hidden states [B, T, C] after the final norm. With a cache the tokens follow those in it, and it
  /// advances.
  Tensor hidden(const Tensor& ids_BT, nn::KvCache* cache = nullptr);
  /// [B, T, V]
  Tensor logits(const Tensor& ids_BT, nn::KvCache* cache = nullptr);
  /// [B, V], of the last token alone.
  Tensor last_logits(const Tensor& ids_BT, nn::KvCache* cache);
  /// scale * sum of the targets' cross-entropy; targets [B, T] i32, -100 is ignored.
  Tensor loss(const Tensor& ids_BT, const Tensor& targets_BT, double scale);
  /// Losses [B * T], without gradients.
  Tensor token_losses(const Tensor& ids_BT, const Tensor& targets_BT);

  /// All parameters by their Hugging Face names; valid until a layer is replaced.
  nn::Parameters parameters();
  /// The linear layers of the blocks, then the output layer where it is not tied.
  std::vector<nn::LinearSlot> linears();

  /// Random weights: normal(0, initializer_range), norms one, biases zero.
  void initialize(std::uint64_t seed);
  /// What the backward pass computes again in place of keeping it.
  void set_recompute(Recompute recompute) { recompute_ = recompute; }
  /// Whether gradients are summed in a fixed order (the default): the same bits in every run.
  void set_deterministic(bool deterministic) { deterministic_ = deterministic; }

  /// Says that every parameter has been given a tensor on `device`: how a model built on meta comes to life.
  void adopt(Device device);

  const ModelConfig& config() const { return config_; }
  DType dtype() const { return dtype_; }
  Device device() const { return device_; }
  nn::KvCache make_cache(std::int64_t batch, std::int64_t capacity) const;

 private:
  struct Block;

  ModelConfig config_;
  DType dtype_;
  Device device_;
  Recompute recompute_ = Recompute::none;
  bool deterministic_ = true;
  Tensor embedding_;  // [V, C]
  std::vector<std::unique_ptr<Block>> blocks_;
  Tensor norm_;  // [C]
  std::unique_ptr<nn::Linear> head_;
  nn::RotaryTable rotary_;
};

}  // namespace ridge::models
