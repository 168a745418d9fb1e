// A model's layers over a cache, as decoding runs them: no gradients, and buffers that are there before.
// B sequences, T tokens of each, R = B T rows, C channels, V vocabulary.
#pragma once

#include <vector>

#include "core/models/llama.h"
#include "inference/cache.h"
#include "inference/product.h"

namespace ridge::parallel {
class VocabParallelEmbedding;
}

namespace ridge::inference {

class DecodeModel {
 public:
  /// For passes of at most `rows` tokens of at most `sequences`. The model must outlive it, its layers in
  /// their places; of one that is cut over ranks all run the same passes. A UserError where its dtype is
  /// neither f32 nor bf16.
  DecodeModel(models::Llama& model, std::int64_t rows, std::int64_t sequences);

  /// What a cache for it looks like, but for slots and format.
  const CacheShape& cache_shape() const { return cache_shape_; }
  std::int64_t vocabulary() const { return head_.plain() ? head_.outputs() : model_.config().vocab_size; }
  /// Whether a pass of few rows waits for nobody and takes no memory: it can be recorded and run again.
  bool plain() const;
  /// Whether a token of each sequence runs by kernels that join a product with what is around it: on a GPU,
  /// for at most kernels::kDecodeRows sequences.
  bool steps() const { return steps_; }
  /// Makes room for passes of `rows` tokens, where there is less.
  void widen(std::int64_t rows);
  /// Makes room for positions below `capacity`: before passes that have such.
  void reach(std::int64_t capacity);

  /// Tokens `ids` [R] i32 at `positions` [B, T] i32 of slots first .. first + B - 1, both on the device; a
  /// position of -1 is no token, and all are below `keys` (0: the capacity), which sizes the work. Keys and
  /// values go to the cache. With `want_logits` those of each
  /// sequence's last token, [B, V], which hold until the next pass.
  Tensor run(const Tensor& ids_R, const Tensor& positions_BT, const Cache& cache, std::int64_t first,
             bool want_logits, std::int64_t keys = 0);

 private:
  struct Layer {
    Tensor attention_norm, mlp_norm;  // [C]
    Product qkv, o, gate_up, down;
    std::int64_t window = 0;
  };
  struct Room {
    Tensor x, y, delta;                  // [R, C]
    Tensor qkv, attended, gate_up, act;  // [R, .]
    Tensor last_x, last_y;               // [B, C]
    Tensor logits;                       // [B, V]
    Tensor scratch;                      // f32, of attention
  };

  void find_layers();
  void make_room(std::int64_t rows);
  template <class T>
  Tensor run_as(const Tensor& ids_R, const Tensor& positions_BT, const Cache& cache, std::int64_t first,
                bool want_logits, std::int64_t keys);
  bool has_step(std::int64_t sequences) const;
  Tensor step(const Tensor& ids_B, const Tensor& positions_B, const Cache& cache, std::int64_t first,
              std::int64_t keys);
  void step_layer(const Layer& layer, const Tensor& x_BC, const Tensor& positions_B,
                  const kernels::KvView& cache, std::int64_t keys);
  bool joins_gate_up(const Layer& layer, std::int64_t sequences) const;
  void step_feed_forward(const Layer& layer, const Tensor& x_BC);
  Tensor step_head(const Tensor& x_BC);
  void step_sum(const Product& product, const Tensor& in_BK, const Tensor& x_BC);
  kernels::ProductSteps after_norm(const Tensor& weight_C) const;
  template <class T>
  Tensor embed(const Tensor& ids_R);
  template <class T>
  Tensor attend(const Layer& layer, const Tensor& y_BTC, const Tensor& positions_BT,
                const kernels::KvView& cache, std::int64_t keys);
  /// act(gate) up, [R, F].
  template <class T>
  void activate(const Tensor& gate, const Tensor& up, const Tensor& act) const;
  template <class T>
  Tensor feed_forward(const Layer& layer, const Tensor& y_BTC);
  template <class T>
  Tensor head(const Tensor& x_BTC, const Tensor& delta_BTC);

  models::Llama& model_;
  std::int64_t rows_ = 0, sequences_;  // of a pass, at most
  ops::HeadCounts heads_{};            // held here
  std::int64_t intermediate_ = 0;      // held here
  CacheShape cache_shape_;
  std::vector<Layer> layers_;
  Tensor norm_;  // [C]
  Product head_;
  bool whole_table_ = true;                                      // the embedding is a plain table
  const parallel::VocabParallelEmbedding* cut_table_ = nullptr;  // it is, of this rank's ids
  Tensor cos_, sin_;                                             // [P, D/2]
  Room room_;
  bool steps_ = false;  // for any number of sequences: bits of one do not depend on how many there are
};

}  // namespace ridge::inference
