// Keys and values of the tokens so far, for decoding.
#pragma once

#include <vector>

#include "core/tensor.h"

namespace ridge::nn {

/// Fixed capacity. B sequences of one length, G key-value heads, D head dim.
class KvCache {
 public:
  KvCache(std::int64_t layers, std::int64_t batch, std::int64_t capacity, std::int64_t kv_heads,
          std::int64_t head_dim, DType dtype, Device device);

  std::int64_t length() const { return length_; }
  std::int64_t capacity() const { return capacity_; }
  /// Writes k and v [B, T, G, D] at the positions after `length()`. An Error past the capacity.
  void append(std::int64_t layer, const Tensor& k_BTGD, const Tensor& v_BTGD);
  /// What a layer has seen, with `extra` tokens that were appended since the last advance: [B, length +
  /// extra, G, D].
  Tensor keys(std::int64_t layer, std::int64_t extra) const;
  Tensor values(std::int64_t layer, std::int64_t extra) const;
  /// All layers have appended `tokens`.
  void advance(std::int64_t tokens) { length_ += tokens; }

 private:
  std::vector<Tensor> keys_, values_;  // a layer each: [B, capacity, G, D]
  std::int64_t capacity_;
  std::int64_t length_ = 0;
};

}  // namespace ridge::nn
