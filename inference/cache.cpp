#include "inference/cache.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <string>

#include "core/base/cuda.h"
#include "core/base/error.h"
#include "core/base/memory.h"

namespace ridge::inference {
namespace {

using kernels::KvFormat;

DType stored(KvFormat format) {
  if (format == KvFormat::f32) return DType::f32;
  return format == KvFormat::bf16 ? DType::bf16 : DType::u8;
}

double gib(std::int64_t bytes) { return static_cast<double>(bytes) / (std::int64_t{1} << 30); }

std::int64_t host_bytes() {
  std::ifstream file("/proc/meminfo");
  std::string key;
  for (std::int64_t kib = 0; file >> key >> kib; file.ignore(64, '\n')) {
    if (key == "MemAvailable:") return kib * 1024;
  }
  return std::numeric_limits<std::int64_t>::max();  // no such file: nothing is known
}

}  // namespace

KvFormat kv_format_of(DType dtype) { return dtype == DType::bf16 ? KvFormat::bf16 : KvFormat::f32; }

std::int64_t CacheShape::bytes(std::int64_t capacity) const {
  return layers * slots * capacity * kernels::kv_bytes(format, kv_heads, head_dim);
}

std::int64_t available_bytes(Device device) {
  if (device == Device::meta) return std::numeric_limits<std::int64_t>::max();
  const MemoryStats pool = memory_stats(device);
  const std::int64_t system = device == Device::cuda ? cuda::device_memory().free : host_bytes();
  const std::int64_t spare = pool.reserved - pool.live;
  return system > std::numeric_limits<std::int64_t>::max() - spare ? system : system + spare;
}

Cache::Cache(const CacheShape& shape, std::int64_t capacity, Device device)
    : shape_(shape), capacity_(capacity), device_(device) {
  const std::int64_t token = shape.bytes(1), room = available_bytes(device);
  require(capacity <= room / std::max<std::int64_t>(token, 1),
          "a KV cache of {} x {} tokens, {} bytes each, needs {:.2f} GiB, and {} has {:.2f} GiB free: ask "
          "for fewer tokens, fewer sequences at once, or a smaller cache format",
          shape.slots, capacity, token / std::max<std::int64_t>(shape.slots, 1),
          static_cast<double>(token) * static_cast<double>(capacity) / (1 << 30), name_of(device), gib(room));
  for (std::int64_t l = 0; l < shape.layers; ++l) layers_.push_back(make_layer(capacity));
}

Cache::Layer Cache::make_layer(std::int64_t capacity) const {
  const PurposeScope purpose(Purpose::activations);
  const Shape scales{shape_.slots, capacity, shape_.kv_heads};
  const Shape codes{shape_.slots, capacity, shape_.kv_heads, shape_.head_dim};
  const DType dtype = stored(shape_.format);
  Layer layer{Tensor::empty(codes, dtype, device_), Tensor::empty(codes, dtype, device_), {}, {}};
  if (kernels::has_scales(shape_.format)) {
    layer.key_scales = Tensor::empty(scales, DType::f32, device_);
    layer.value_scales = Tensor::empty(scales, DType::f32, device_);
  }
  return layer;
}

kernels::KvView Cache::view(std::int64_t layer, std::int64_t first, std::int64_t count) const {
  const Layer& l = layers_.at(static_cast<std::size_t>(layer));
  const auto scales = [&](const Tensor& t) {
    return t.defined() ? static_cast<float*>(t.sliced(0, first, first + count).data()) : nullptr;
  };
  return {shape_.format,
          l.keys.sliced(0, first, first + count).data(),
          l.values.sliced(0, first, first + count).data(),
          scales(l.key_scales),
          scales(l.value_scales),
          count,
          l.keys.dim(1),
          shape_.kv_heads,
          shape_.head_dim};
}

void Cache::grow(std::int64_t capacity) {
  check(capacity > capacity_, "a cache grows");
  const std::int64_t before = capacity_;
  const std::int64_t twice = shape_.bytes(before) / std::max<std::int64_t>(shape_.layers, 1);  // one layer
  const std::int64_t more = shape_.bytes(capacity) - shape_.bytes(before) + twice;
  const std::int64_t room = available_bytes(device_);
  require(more <= room,
          "a KV cache that grows from {} to {} tokens needs {:.2f} GiB more, and {} has {:.2f} GiB free",
          before, capacity, gib(more), name_of(device_), gib(room));
  for (Layer& layer : layers_) {                  // one after the other: at most one is held twice
    if (layer.keys.dim(1) >= capacity) continue;  // there was no room for those after it, before
    const Layer wide = make_layer(capacity);
    const auto carry = [before](const Tensor& from, const Tensor& to) {
      if (from.defined()) to.sliced(1, 0, before).copy_from(from);
    };
    carry(layer.keys, wide.keys);
    carry(layer.values, wide.values);
    carry(layer.key_scales, wide.key_scales);
    carry(layer.value_scales, wide.value_scales);
    layer = wide;
  }
  capacity_ = capacity;
}

}  // namespace ridge::inference
