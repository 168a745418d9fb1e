// Keys and values of an engine's sequences, each at a place of its own.
#pragma once

#include <vector>

#include "core/tensor.h"
#include "kernels/kv_cache.h"

namespace ridge::inference {

/// What holds values of a model's dtype as they are.
kernels::KvFormat kv_format_of(DType dtype);

struct CacheShape {
  std::int64_t layers = 0, slots = 0, kv_heads = 0, head_dim = 0;
  kernels::KvFormat format = kernels::KvFormat::f32;

  /// Of all layers and slots.
  std::int64_t bytes(std::int64_t capacity) const;
};

/// Bytes that a process may still take of a device's memory, blocks that the pool has free included.
std::int64_t available_bytes(Device device);

class Cache {
 public:
  /// `capacity` tokens of each slot. A UserError where the device has no room for it.
  Cache(const CacheShape& shape, std::int64_t capacity, Device device);

  const CacheShape& shape() const { return shape_; }
  std::int64_t capacity() const { return capacity_; }
  std::int64_t bytes() const { return shape_.bytes(capacity_); }
  /// Slots first .. first + count - 1 of a layer.
  kernels::KvView view(std::int64_t layer, std::int64_t first, std::int64_t count) const;
  /// Room for `capacity` tokens of each slot, more than before; what was written stays. Views end. Where
  /// memory has no room an error is thrown, and it serves as many tokens as before.
  void grow(std::int64_t capacity);

 private:
  // [B, S, G, D], and scales [B, S, G] where the format has them; S is the capacity at least.
  struct Layer {
    Tensor keys, values, key_scales, value_scales;
  };
  Layer make_layer(std::int64_t capacity) const;

  CacheShape shape_;
  std::int64_t capacity_;
  Device device_;
  std::vector<Layer> layers_;
};

}  // namespace ridge::inference
