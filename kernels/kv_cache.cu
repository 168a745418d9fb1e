// A warp takes one head of a token: it rotates a head of q in place, or a head of k into the cache, or keeps
// a head of v. H query heads, G key-value heads, D head dim.
#include "core/base/error.h"
#include "kernels/device/block.cuh"
#include "kernels/device/launch.cuh"
#include "kernels/device/vec.cuh"
#include "kernels/kv_cache.h"
#include "kernels/kv_codes.h"

namespace ridge::kernels::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kMostPairs = 4;  // of elements d, d + D/2 a lane; D up to 256

template <class T>
struct Operands {
  T* qkv_BTX;
  const float *cos_PD2, *sin_PD2;
  const std::int32_t* positions_BT;
  void *keys_BSGD, *values_BSGD;
  float *key_scales_BSG, *value_scales_BSG;
  std::int64_t stride[2];                            // of qkv: B, T
  std::int64_t tokens, all_tokens, capacity, limit;  // positions are below limit
  int heads, kv_heads, half;
};

// Elements lane + 32 i of both halves of a head.
struct Pairs {
  float low[kMostPairs], high[kMostPairs];

  template <class T>
  __device__ __forceinline__ void load(const T* from, int half, int lane) {
#pragma unroll
    for (int i = 0; i < kMostPairs; ++i) {
      const int j = lane + 32 * i;
      low[i] = j < half ? device::load(from[j]) : 0.0f;
      high[i] = j < half ? device::load(from[j + half]) : 0.0f;
    }
  }
  /// Rounds to T.
  template <class T>
  __device__ __forceinline__ void rotate(const float* cos, const float* sin, int half, int lane) {
#pragma unroll
    for (int i = 0; i < kMostPairs; ++i) {
      const int j = lane + 32 * i;
      if (j >= half) continue;
      const float c = cos[j], s = sin[j], first = low[i], second = high[i];
      low[i] = device::load(device::round_to<T>(first * c - second * s));
      high[i] = device::load(device::round_to<T>(second * c + first * s));
    }
  }
  /// Writes what `as` makes of each element.
  template <class K, class As>
  __device__ __forceinline__ void store(K* to, int half, int lane, const As& as) const {
#pragma unroll
    for (int i = 0; i < kMostPairs; ++i) {
      const int j = lane + 32 * i;
      if (j >= half) continue;
      to[j] = as(low[i]);
      to[j + half] = as(high[i]);
    }
  }
  /// Of all lanes.
  __device__ __forceinline__ std::uint32_t absmax() const {
    std::uint32_t most = 0;
#pragma unroll
    for (int i = 0; i < kMostPairs; ++i)
      most = max(most, max(magnitude_bits(low[i]), magnitude_bits(high[i])));
    return device::warp_all<device::Max>(most);
  }
};

template <class K>
__device__ __forceinline__ void keep(const Pairs& x, void* data, float* scales, std::int64_t slot, int half,
                                     int lane) {
  K* to = static_cast<K*>(data) + slot * 2 * half;
  if constexpr (kKvScaled<K>) {
    const float scale = scale_of(x.absmax(), kKvDivisor<K>);
    if (lane == 0) scales[slot] = scale;
    x.store(to, half, lane, [&](float value) { return K{kv_code<K>(value / scale)}; });
  } else {
    x.store(to, half, lane, [](float value) { return device::round_to<K>(value); });
  }
}

template <class T, class K>
__global__ void __launch_bounds__(32 * kWarps) append(const __grid_constant__ Operands<T> o) {
  const int lane = static_cast<int>(threadIdx.x) % 32, all_heads = o.heads + 2 * o.kv_heads;
  const std::int64_t unit = static_cast<std::int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32;
  const std::int64_t token = unit / all_heads;
  if (token >= o.all_tokens) return;
  const int head = static_cast<int>(unit - token * all_heads);
  const std::int64_t position = o.positions_BT[token];
  if (position < 0 || position >= o.limit) return;
  const std::int64_t b = token / o.tokens, t = token - b * o.tokens;
  T* at = o.qkv_BTX + b * o.stride[0] + t * o.stride[1] + static_cast<std::int64_t>(head) * 2 * o.half;
  Pairs x;
  x.load(at, o.half, lane);
  if (head < o.heads + o.kv_heads)
    x.template rotate<T>(o.cos_PD2 + position * o.half, o.sin_PD2 + position * o.half, o.half, lane);
  if (head < o.heads)
    return x.store(at, o.half, lane, [](float value) { return device::round_to<T>(value); });
  const bool key = head < o.heads + o.kv_heads;
  const std::int64_t slot = (b * o.capacity + position) * o.kv_heads + (head - o.heads) % o.kv_heads;
  keep<K>(x, key ? o.keys_BSGD : o.values_BSGD, key ? o.key_scales_BSG : o.value_scales_BSG, slot, o.half,
          lane);
}

}  // namespace

template <class T>
void rotary_append(Stream& stream, View<T> qkv, const QkvHeads& heads, View<const float> cos,
                   View<const float> sin, View<const std::int32_t> positions, const KvView& cache) {
  if (heads.head_dim > 64 * kMostPairs)
    fail("rotary_append: a head dim of {}, of at most 256 on a GPU", heads.head_dim);
  if (qkv.numel() == 0) return;
  const Operands<T> o{qkv.data,
                      cos.data,
                      sin.data,
                      positions.data,
                      cache.keys,
                      cache.values,
                      cache.key_scales,
                      cache.value_scales,
                      {qkv.strides[0], qkv.strides[1]},
                      qkv.dim(1),
                      qkv.dim(0) * qkv.dim(1),
                      cache.capacity,
                      std::min(cache.capacity, cos.dim(0)),
                      static_cast<int>(heads.heads),
                      static_cast<int>(heads.kv_heads),
                      static_cast<int>(heads.head_dim / 2)};
  const unsigned blocks = device::grid_for(o.all_tokens * (o.heads + 2 * o.kv_heads), kWarps);
  visit_kv(cache.format, [&](auto tag) {
    using K = typename decltype(tag)::type;
    append<T, K><<<blocks, 32 * kWarps, 0, device::native(stream)>>>(o);
  });
}

template void rotary_append(Stream&, View<float>, const QkvHeads&, View<const float>, View<const float>,
                            View<const std::int32_t>, const KvView&);
template void rotary_append(Stream&, View<bf16>, const QkvHeads&, View<const float>, View<const float>,
                            View<const std::int32_t>, const KvView&);

}  // namespace ridge::kernels::cuda
