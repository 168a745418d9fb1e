#include "core/nn/kv_cache.h"

namespace ridge::nn {

KvCache::KvCache(std::int64_t layers, std::int64_t batch, std::int64_t capacity, std::int64_t kv_heads,
                 std::int64_t head_dim, DType dtype, Device device)
    : capacity_(capacity) {
  for (std::int64_t layer = 0; layer < layers; ++layer) {
    keys_.push_back(Tensor::empty({batch, capacity, kv_heads, head_dim}, dtype, device));
    values_.push_back(Tensor::empty({batch, capacity, kv_heads, head_dim}, dtype, device));
  }
}

void KvCache::append(std::int64_t layer, const Tensor& k_BTGD, const Tensor& v_BTGD) {
  const std::int64_t end = length_ + k_BTGD.dim(1);
  if (end > capacity_) fail("KV cache of {} tokens is full: {} are needed", capacity_, end);
  const auto l = static_cast<std::size_t>(layer);
  keys_.at(l).sliced(1, length_, end).copy_from(k_BTGD);
  values_.at(l).sliced(1, length_, end).copy_from(v_BTGD);
}

Tensor KvCache::keys(std::int64_t layer, std::int64_t extra) const {
  return keys_.at(static_cast<std::size_t>(layer)).sliced(1, 0, length_ + extra);
}

Tensor KvCache::values(std::int64_t layer, std::int64_t extra) const {
  return values_.at(static_cast<std::size_t>(layer)).sliced(1, 0, length_ + extra);
}

}  // namespace ridge::nn
