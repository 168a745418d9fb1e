// Up to eight query rows against tiles of a ring: keys, then columns of values, are the 16 rows of a left
// operand and the queries the 8 columns of a right one, so that nothing of a product is wasted.
//
// Lane l has query rows 2 (l % 4), + 1 of scores and sums; of a score the keys l / 4 and l / 4 + 8.
#pragma once

#include "kernels/cached_attention_mma.cuh"

namespace ridge::kernels::cuda {

/// Eight rows of eight pairs, from lanes that hold them by rows to lanes that hold them by columns.
__device__ __forceinline__ unsigned transposed(unsigned pair) {
  unsigned y;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(pair));
  return y;
}
/// Over the lanes with the same l % 4.
template <class Op>
__device__ __forceinline__ float over_rows(float x, Op op) {
#pragma unroll
  for (int lanes = 4; lanes < 32; lanes *= 2) x = op(x, __shfl_xor_sync(0xFFFFFFFFu, x, lanes));
  return x;
}

template <class K, int kDim>
struct DecodeRows {
  using R = Ring<K, kDim>;
  static constexpr int kSixteens = R::kKeys / 16;  // of keys
  static constexpr bool kWide = sizeof(K) == 2;
  unsigned q[kDim / 16][2];       // of row l / 4
  float sums[kDim / 16][4] = {};  // columns column(i), twice, then column(i) + kNext
  float peak[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};
  CachedRange seen{0, 0};

  static constexpr int kNext = kWide ? 8 : 1;
  static __device__ __forceinline__ int column(int i) { return 16 * i + (kWide ? 1 : 2) * (lane_id() / 4); }

  __device__ __forceinline__ void score(const R& ring, int stage, float (&scores)[kSixteens][4]) const {
    const int matrix = lane_id() / 8, row = lane_id() % 8;
    const unsigned tile = ring.tile(stage, 0);
    float odd[kSixteens][4];  // of every other step: two chains
#pragma unroll
    for (int j = 0; j < kSixteens; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) scores[j][i] = odd[j][i] = 0;
    }
#pragma unroll
    for (int k = 0; k < kDim / 16; ++k) {
      if constexpr (kWide) {
#pragma unroll
        for (int j = 0; j < kSixteens; ++j)
          multiply(k % 2 == 0 ? scores[j] : odd[j],
                   matrices_at(tile + R::offset(16 * j + matrix % 2 * 8 + row, 2 * k + matrix / 2)), q[k][0],
                   q[k][1]);
      } else {
        const Fragment x = matrices_at(tile + R::offset(matrix * 8 + row, k));
#pragma unroll
        for (int j = 0; j < kSixteens; ++j)
          multiply(k % 2 == 0 ? scores[j] : odd[j],
                   {even_pair<K>(x.pair[2 * j]), even_pair<K>(x.pair[2 * j + 1]), odd_pair<K>(x.pair[2 * j]),
                    odd_pair<K>(x.pair[2 * j + 1])},
                   q[k][0], q[k][1]);
      }
    }
#pragma unroll
    for (int j = 0; j < kSixteens; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) scores[j][i] += odd[j][i];
    }
  }

  /// Of key `key` of the tile.
  static __device__ __forceinline__ float scale_of_key(const R& ring, int stage, int which, int key) {
    if constexpr (!kKvScaled<K>) return 1;
    float x;
    asm volatile("ld.shared.f32 %0, [%1];"
                 : "=f"(x)
                 : "r"(ring.scales_at(stage) + static_cast<unsigned>(4 * (which * R::kKeys + key)))
                 : "memory");
    return x;
  }

  /// Scores become weights; `first`: the tile's first key.
  __device__ __forceinline__ void soften(const R& ring, int stage, int first, float scale,
                                         float (&scores)[kSixteens][4]) {
    const bool all_seen = seen.begin <= first && first + R::kKeys <= seen.end;
    float most[2] = {peak[0], peak[1]};
#pragma unroll
    for (int j = 0; j < kSixteens; ++j) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int key = 16 * j + 8 * half + lane_id() / 4;
        const float by = scale * scale_of_key(ring, stage, 0, key);
        const bool hidden = !all_seen && (first + key < seen.begin || first + key >= seen.end);
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          float& x = scores[j][2 * half + r];
          x = hidden ? -INFINITY : x * by;
          most[r] = fmaxf(most[r], x);
        }
      }
    }
    float base[2], keep[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      most[r] = over_rows(most[r], [](float a, float b) { return fmaxf(a, b); });
      base[r] = finite_base(most[r]);
      keep[r] = fast_power2(peak[r] - base[r]);
      peak[r] = most[r];
      sum[r] *= keep[r];
    }
#pragma unroll
    for (int j = 0; j < kSixteens; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        scores[j][i] = fast_power2(scores[j][i] - base[i % 2]);
        sum[i % 2] += scores[j][i];
      }
    }
    if (__any_sync(0xFFFFFFFFu, keep[0] != 1 || keep[1] != 1)) {
#pragma unroll
      for (int n = 0; n < kDim / 16; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[n][i] *= keep[i % 2];
      }
    }
  }

  __device__ __forceinline__ void mix(const R& ring, int stage, const float (&weights)[kSixteens][4]) {
    const int matrix = lane_id() / 8, row = lane_id() % 8;
    const unsigned tile = ring.tile(stage, 1);
    unsigned w[kSixteens][2];
#pragma unroll
    for (int j = 0; j < kSixteens; ++j) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float by = scale_of_key(ring, stage, 1, 16 * j + 8 * half + lane_id() / 4);
        w[j][half] = transposed(pack(weights[j][2 * half] * by, weights[j][2 * half + 1] * by));
      }
    }
#pragma unroll
    for (int n = 0; n < kDim / 16; ++n) {
      if constexpr (kWide) {
#pragma unroll
        for (int j = 0; j < kSixteens; ++j)
          multiply(sums[n],
                   transposed_at(tile + R::offset(16 * j + matrix / 2 * 8 + row, 2 * n + matrix % 2)),
                   w[j][0], w[j][1]);
      } else {
        const Fragment x = transposed_at(tile + R::offset(matrix * 8 + row, n));  // two columns an element
#pragma unroll
        for (int j = 0; j < kSixteens; ++j)
          multiply(sums[n],
                   {even_pair<K>(x.pair[2 * j]), odd_pair<K>(x.pair[2 * j]), even_pair<K>(x.pair[2 * j + 1]),
                    odd_pair<K>(x.pair[2 * j + 1])},
                   w[j][0], w[j][1]);
      }
    }
  }
};

}  // namespace ridge::kernels::cuda
