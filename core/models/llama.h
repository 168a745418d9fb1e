// The Llama family: Llama 2 and 3, Qwen2 and 2.5, Mistral. It knows nothing of meshes, adapters or weight
// formats.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "core/models/config.h"
#include "core/nn/embedding.h"
#include "core/nn/kv_cache.h"
#include "core/nn/linear.h"
#include "core/nn/module.h"
#include "core/nn/self_attention.h"

namespace ridge::models {

/// Nothing; norms and activations (cheap to compute, dear to keep); all but the input of each block.
enum class Recompute { none, selective, blocks };

/// Blocks first .. end - 1: a part of a model. The embedding goes with block 0, the final norm and the output
/// layer with the last.
struct LayerRange {
  std::int64_t first = 0, end = 0;

  bool operator==(const LayerRange&) const = default;
};

/// Random values of a whole parameter: matrices normal(0, initializer_range), norms one, biases zero.
/// `index`: its place among the parameters of the whole model.
void initialize_parameter(const ModelConfig& config, const nn::Parameter& parameter, std::uint64_t index,
                          std::uint64_t seed);

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

  /// The parts of loss(), for a model in stages: the embedding [B, T, C], a run of blocks, and norm, output
  /// layer and loss.
  Tensor embed(const Tensor& ids_BT);
  Tensor run_blocks(LayerRange range, const Tensor& x_BTC);
  Tensor finish_loss(const Tensor& x_BTC, const Tensor& targets_BT, double scale);
  /// As token_losses, of what the last block gives.
  Tensor finish_token_losses(const Tensor& x_BTC, const Tensor& targets_BT);
  /// Drops all blocks but those of `ranges`, and the embedding, norm and output layer that do not go with
  /// them. A tied output layer keeps its table.
  void keep(const std::vector<LayerRange>& ranges);

  /// All parameters by their Hugging Face names; valid until a layer is replaced.
  nn::Parameters parameters();
  /// The same by unit: the embedding, the blocks, the final norm with the output layer. A tied model's last
  /// unit is its first. Units that were dropped are empty.
  std::vector<nn::Unit> units();
  /// The linear layers of the blocks, then the output layer where it is not tied.
  std::vector<nn::LinearSlot> linears();

  /// Where layers of another kind may be put; null where they were dropped.
  std::unique_ptr<nn::Embedding>& embedding_slot() { return embedding_; }
  std::unique_ptr<nn::Linear>& head_slot() { return head_; }
  void set_attention(std::shared_ptr<const nn::SelfAttention> attention) {
    attention_ = std::move(attention);
  }
  /// Between layers this rank holds T / pieces tokens of each sequence; its layers bring them together.
  void set_sequence_pieces(std::int64_t pieces) { sequence_pieces_ = pieces; }
  /// Null: none. It must outlive the model's use.
  void set_observer(nn::UnitObserver* observer) { observer_ = observer; }

  /// Random weights: initialize_parameter() of each.
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
  struct Residual;

  Residual blocks(LayerRange range, Residual residual, nn::KvCache* cache);
  Tensor final_norm(Residual residual);
  std::size_t head_unit() const { return config_.tied ? 0 : static_cast<std::size_t>(config_.layers) + 1; }
  Tensor enter(std::size_t unit, const Tensor& x) { return observer_ ? observer_->enter(unit, x) : x; }
  Tensor leave(std::size_t unit, const Tensor& y) { return observer_ ? observer_->leave(unit, y) : y; }

  ModelConfig config_;
  DType dtype_;
  Device device_;
  Recompute recompute_ = Recompute::none;
  bool deterministic_ = true;
  std::int64_t sequence_pieces_ = 1;
  std::unique_ptr<nn::Embedding> embedding_;    // [V, C]
  std::vector<std::unique_ptr<Block>> blocks_;  // one a layer; null where dropped
  Tensor norm_;                                 // [C]
  std::unique_ptr<nn::Linear> head_;
  nn::RotaryTable rotary_;
  std::shared_ptr<const nn::SelfAttention> attention_;
  nn::UnitObserver* observer_ = nullptr;
};

}  // namespace ridge::models
