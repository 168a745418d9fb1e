// The new token on its way into attention: rotated query heads as an operand, and its key and value as
// the cache keeps them. The arithmetic is rotary_append's (kv_cache.cu), bit for bit.
#pragma once

#include "kernels/decode_attention.cuh"

namespace ridge::kernels::cuda {

__device__ __forceinline__ float2 unpack(unsigned pair) {
  return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xFFFF0000u)};
}

/// Pairs of elements d, d + 1 and d + D/2, d + D/2 + 1, rotated and rounded.
__device__ __forceinline__ void rotate_pairs(unsigned& low, unsigned& high, float2 cos, float2 sin) {
  const float2 first = unpack(low), second = unpack(high);
  low = pack(first.x * cos.x - second.x * sin.x, first.y * cos.y - second.y * sin.y);
  high = pack(second.x * cos.x + first.x * sin.x, second.y * cos.y + first.y * sin.y);
}

/// A lane's elements of query head l / 4, in the operand's places.
template <class Rows, int kDim>
struct DecodeQueries {
  static constexpr int kHalfSteps = kDim / 32;  // of 16 elements
  static constexpr int kFirst = Rows::kWide ? 2 : 4, kSecond = Rows::kWide ? 8 : 2;
  float2 cos[kHalfSteps][2], sin[kHalfSteps][2];
  unsigned x[2 * kHalfSteps][2];

  /// Nothing that a kernel ahead writes.
  __device__ __forceinline__ void load_angles(const DecodeAttentionParams& p, int position) {
    const std::int64_t at = static_cast<std::int64_t>(position) * (kDim / 2) + kFirst * (lane_id() % 4);
#pragma unroll
    for (int k = 0; k < kHalfSteps; ++k) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        cos[k][i] = *reinterpret_cast<const float2*>(p.cos_PD2 + at + 16 * k + kSecond * i);
        sin[k][i] = *reinterpret_cast<const float2*>(p.sin_PD2 + at + 16 * k + kSecond * i);
      }
    }
  }
  __device__ __forceinline__ void load(const DecodeBlock& at) {
    const int row = lane_id() / 4;
    const bf16* from = at.head_of(at.g * at.p.share + row, kDim) + kFirst * (lane_id() % 4);
#pragma unroll
    for (int k = 0; k < 2 * kHalfSteps; ++k) {
#pragma unroll
      for (int i = 0; i < 2; ++i)
        x[k][i] = row < at.p.share ? *reinterpret_cast<const unsigned*>(from + 16 * k + kSecond * i) : 0u;
    }
  }
  __device__ __forceinline__ void rotate(Rows& rows) {
#pragma unroll
    for (int k = 0; k < kHalfSteps; ++k) {
#pragma unroll
      for (int i = 0; i < 2; ++i) rotate_pairs(x[k][i], x[k + kHalfSteps][i], cos[k][i], sin[k][i]);
    }
#pragma unroll
    for (int k = 0; k < 2 * kHalfSteps; ++k) {
      // Codes come as elements 0, 2 and 1, 3 of four.
      rows.q[k][0] = Rows::kWide ? x[k][0] : __byte_perm(x[k][0], x[k][1], 0x5410);
      rows.q[k][1] = Rows::kWide ? x[k][1] : __byte_perm(x[k][0], x[k][1], 0x7632);
    }
  }
};

__device__ __forceinline__ void store_shared(unsigned to, unsigned word, int bytes) {
  if (bytes == 4) {
    asm volatile("st.shared.b32 [%0], %1;" ::"r"(to), "r"(word) : "memory");
  } else {
    asm volatile("st.shared.b16 [%0], %1;" ::"r"(to), "h"(static_cast<unsigned short>(word)) : "memory");
  }
}

/// A head of k or v: a lane's elements 2 l, 2 l + 1 and those half a head on; lanes beyond have zeros.
template <class K, int kDim>
struct DecodeHead {
  static constexpr int kBytes = 2 * static_cast<int>(sizeof(K));  // of two elements
  unsigned word[2];
  float scale = 1;

  static __device__ __forceinline__ bool has_elements() { return 4 * lane_id() < kDim; }
  __device__ __forceinline__ void load(const bf16* head) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      word[i] = 0;
      if (has_elements()) word[i] = *reinterpret_cast<const unsigned*>(head + i * (kDim / 2) + 2 * lane_id());
    }
  }
  /// From pairs of bf16 to the cache's elements.
  __device__ __forceinline__ void encode() {
    if constexpr (kKvScaled<K>) {
      const float2 x[2] = {unpack(word[0]), unpack(word[1])};
      unsigned most = max(max(magnitude_bits(x[0].x), magnitude_bits(x[0].y)),
                          max(magnitude_bits(x[1].x), magnitude_bits(x[1].y)));
      scale = scale_of(__reduce_max_sync(0xFFFFFFFFu, most), kKvDivisor<K>);
#pragma unroll
      for (int i = 0; i < 2; ++i)
        word[i] = kv_code<K>(x[i].x / scale) | static_cast<unsigned>(kv_code<K>(x[i].y / scale)) << 8;
    }
  }
  /// Into row `slot` of the cache.
  __device__ __forceinline__ void append(void* data, float* scales, std::int64_t slot) const {
    using Word = std::conditional_t<kBytes == 4, unsigned, unsigned short>;
    Word* to = reinterpret_cast<Word*>(static_cast<K*>(data) + slot * kDim);
    if (has_elements()) {
      to[lane_id()] = static_cast<Word>(word[0]);
      to[kDim / 4 + lane_id()] = static_cast<Word>(word[1]);
    }
    if (kKvScaled<K> && lane_id() == 0) scales[slot] = scale;
  }
  /// Into row `row` of a tile in shared memory.
  __device__ __forceinline__ void insert(unsigned tile, unsigned tile_scale, int row) const {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int byte = i * (kDim / 4) * kBytes + lane_id() * kBytes;
      const unsigned to = tile + Ring<K, kDim>::offset(row, byte / 16) + static_cast<unsigned>(byte % 16);
      if (has_elements()) store_shared(to, word[i], kBytes);
    }
    if (kKvScaled<K> && lane_id() == 0) store_shared(tile_scale, __float_as_uint(scale), 4);
  }
};

/// Key and value of the new token, in the warp whose tile they belong to.
template <class K, int kDim>
struct DecodeToken {
  DecodeHead<K, kDim> key, value;
  float2 cos{}, sin{};

  __device__ __forceinline__ void load_angles(const DecodeAttentionParams& p, int position) {
    if (!DecodeHead<K, kDim>::has_elements()) return;
    const std::int64_t at = static_cast<std::int64_t>(position) * (kDim / 2) + 2 * lane_id();
    cos = *reinterpret_cast<const float2*>(p.cos_PD2 + at);
    sin = *reinterpret_cast<const float2*>(p.sin_PD2 + at);
  }
  __device__ __forceinline__ void load(const DecodeBlock& at) {
    key.load(at.head_of(at.p.heads + at.g, kDim));
    value.load(at.head_of(at.p.heads + at.p.groups + at.g, kDim));
  }
  __device__ __forceinline__ void append(const DecodeBlock& at) {
    rotate_pairs(key.word[0], key.word[1], cos, sin);
    key.encode();
    value.encode();
    const std::int64_t slot = at.cache_row(at.position);
    key.append(at.p.keys_BSGD, at.p.key_scales_BSG, slot);
    value.append(at.p.values_BSGD, at.p.value_scales_BSG, slot);
  }
  __device__ __forceinline__ void insert(const Ring<K, kDim>& ring, int stage, int row) const {
    const unsigned scales = ring.scales_at(stage) + static_cast<unsigned>(4 * row);
    key.insert(ring.tile(stage, 0), scales, row);
    value.insert(ring.tile(stage, 1), scales + 4 * Ring<K, kDim>::kKeys, row);
  }
};

}  // namespace ridge::kernels::cuda
