// Rows against keys and values of 8 or 16 bits on tensor cores. Tiles of a cache lie in a ring in shared
// memory; codes become bf16, exactly, on their way to the tensor cores, and scales meet scores and weights.
#pragma once

#include "kernels/attention_mma.cuh"
#include "kernels/cached_attention.cuh"

namespace ridge::kernels::cuda {

__device__ __forceinline__ unsigned multiply_pairs(unsigned a, unsigned b) {
  unsigned c;
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(c) : "r"(a), "r"(b));
  return c;
}
__device__ __forceinline__ unsigned subtract_pairs(unsigned a, unsigned b) {
  unsigned c;
  asm("sub.rn.bf16x2 %0, %1, %2;" : "=r"(c) : "r"(a), "r"(b));
  return c;
}

// Codes 0 and 2, or 1 and 3, of four as a pair of bf16.
template <class K>
__device__ __forceinline__ unsigned even_pair(unsigned codes) {
  if constexpr (std::is_same_v<K, KvFp8>) {
    return multiply_pairs(((codes << 4) & 0x07F007F0u) | ((codes << 8) & 0x80008000u), 0x7B807B80u);  // 2^120
  } else {  // 128 + the low 7 bits, less 128 or, of negative ones, 256
    return subtract_pairs((codes & 0x007F007Fu) | 0x43004300u, (codes & 0x00800080u) | 0x43004300u);
  }
}
template <class K>
__device__ __forceinline__ unsigned odd_pair(unsigned codes) {
  if constexpr (std::is_same_v<K, KvFp8>) {
    return multiply_pairs(((codes >> 4) & 0x07F007F0u) | (codes & 0x80008000u), 0x7B807B80u);
  } else {
    return even_pair<K>(codes >> 8);
  }
}

__device__ __forceinline__ int lane_id() { return static_cast<int>(threadIdx.x) % 32; }
__device__ __forceinline__ int warp_id() { return static_cast<int>(threadIdx.x) / 32; }

template <int kBytes>
__device__ __forceinline__ void copy_to_shared(unsigned to, const void* from, bool inside) {
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(inside ? 16 : 0)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from), "r"(inside ? 4 : 0)
                 : "memory");
  }
}
__device__ __forceinline__ void end_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kNewer>
__device__ __forceinline__ void wait_for_group() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kNewer) : "memory");
}

/// Of each stage a tile of keys, one of values, and their scales.
template <class K, int kDim>
struct Ring {
  static constexpr int kRowBytes = kDim * static_cast<int>(sizeof(K));
  static constexpr int kChunks = kRowBytes / 16;  // of a row: 4, 8 or 16
  static constexpr int kKeys = kRowBytes == 256 ? 16 : 32;
  static constexpr int kTileBytes = kKeys * kRowBytes;
  static constexpr int kStageBytes = 2 * kTileBytes + (kKvScaled<K> ? 8 * kKeys : 0);
  static constexpr int kStages =
      kTileBytes == 4096 ? 3 : 6;  // 24 KiB, so that two blocks fit a multiprocessor
  static constexpr int kBytes = kStages * kStageBytes;

  unsigned at;  // in shared memory

  __device__ __forceinline__ unsigned tile(int stage, int which) const {
    return at + static_cast<unsigned>(stage * kStageBytes + which * kTileBytes);
  }
  /// Where 16 bytes of a row lie: eight rows of one chunk are in different banks.
  static __device__ __forceinline__ unsigned offset(int row, int chunk) {
    const int turned = kChunks >= 8 ? chunk ^ (row & 7) : chunk ^ ((row >> 1) & 3);
    return static_cast<unsigned>(row * kRowBytes + turned * 16);
  }
  /// Of the keys 2 (l % 4), + 1 of the eight from `key` on.
  static __device__ __forceinline__ float2 scales(unsigned tile_end, int which, int key) {
    float2 two;
    asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];"
                 : "=f"(two.x), "=f"(two.y)
                 : "r"(tile_end + static_cast<unsigned>(4 * (which * kKeys + key + lane_id() % 4 * 2)))
                 : "memory");
    return two;
  }
  __device__ __forceinline__ unsigned scales_at(int stage) const { return tile(stage, 2); }
};

/// Where the keys of a block lie.
template <class K, int kDim>
struct Source {
  using R = Ring<K, kDim>;
  const char *keys, *values;
  const float *key_scales, *value_scales;
  std::int64_t step;        // bytes from key to key
  std::int64_t scale_step;  // floats

  explicit __device__ Source(const CachedBlock<bf16>& at)
      : step(static_cast<std::int64_t>(at.p.groups) * R::kRowBytes), scale_step(at.p.groups) {
    const CachedParams<bf16>& p = at.p;
    const std::int64_t row = at.b * p.capacity * p.groups + at.g;
    keys = static_cast<const char*>(p.keys_BSGD) + row * R::kRowBytes;
    values = static_cast<const char*>(p.values_BSGD) + row * R::kRowBytes;
    key_scales = p.key_scales_BSG + row;
    value_scales = p.value_scales_BSG + row;
  }

  /// Starts to copy the tile of keys from `first` on, with zeros from `end` on; one group, even if empty. By
  /// kThreads threads, of which this is number `thread`.
  template <int kThreads>
  __device__ __forceinline__ void fetch(const R& ring, int stage, int first, int end, int thread) const {
    if (first < end) {
#pragma unroll
      for (int i = 0; i < R::kKeys * R::kChunks / kThreads; ++i) {
        const int piece = thread + kThreads * i, row = piece / R::kChunks, chunk = piece % R::kChunks;
        const bool inside = first + row < end;
        const std::int64_t from = (inside ? first + row : first) * step + chunk * 16;
        copy_to_shared<16>(ring.tile(stage, 0) + R::offset(row, chunk), keys + from, inside);
        copy_to_shared<16>(ring.tile(stage, 1) + R::offset(row, chunk), values + from, inside);
      }
      if constexpr (kKvScaled<K>) {
        static_assert(R::kKeys == 32);
        const bool inside = first + thread < end;
        const std::int64_t from = (inside ? first + thread : first) * scale_step;
        const unsigned to = ring.scales_at(stage) + static_cast<unsigned>(4 * thread);
        if (kThreads == 32 || thread < R::kKeys) {
          copy_to_shared<4>(to, key_scales + from, inside);
          copy_to_shared<4>(to + 4 * R::kKeys, value_scales + from, inside);
        }
      }
    }
    end_group();
  }
};

__device__ __forceinline__ Fragment matrices_at(unsigned row) {
  Fragment f;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(f.pair[0]), "=r"(f.pair[1]), "=r"(f.pair[2]), "=r"(f.pair[3])
               : "r"(row)
               : "memory");
  return f;
}
__device__ __forceinline__ Fragment transposed_at(unsigned row) {
  Fragment f;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(f.pair[0]), "=r"(f.pair[1]), "=r"(f.pair[2]), "=r"(f.pair[3])
               : "r"(row)
               : "memory");
  return f;
}

/// A warp's sums of 16 rows of the block; rows 8 to 15 exist where kUpper. Lane l has rows l / 4 and l / 4
/// + 8.
template <class K, int kDim, bool kUpper>
struct MmaRows {
  using R = Ring<K, kDim>;
  static constexpr int kHalves = kUpper ? 2 : 1;
  static constexpr int kEights = R::kKeys / 8;  // of keys
  static constexpr bool kWide = sizeof(K) == 2;
  Fragment q[kDim / 16];
  float sums[kDim / 8][4] = {};
  float maximum[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};
  CachedRange seen[2];
  CachedRange by_all;  // keys that each of the rows sees

  /// The pair of q's elements d, d + 1.
  static __device__ __forceinline__ unsigned pair(const CachedBlock<bf16>& at, int row, int d) {
    if (row >= at.rows) return 0;
    return *reinterpret_cast<const unsigned*>(at.q_row(row) + d);
  }

  /// Rows `first_row` and on of the block.
  __device__ void start(const CachedBlock<bf16>& at, int first_row) {
    const int row = first_row + lane_id() / 4, column = lane_id() % 4;
#pragma unroll
    for (int k = 0; k < kDim / 16; ++k) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        unsigned first = 0, second = 0;
        if (half < kHalves) {
          const int d = 16 * k + (kWide ? 2 : 4) * column;
          first = pair(at, row + 8 * half, d);
          second = pair(at, row + 8 * half, d + (kWide ? 8 : 2));
        }
        // Codes come as elements 0, 2 and 1, 3 of four.
        q[k].pair[half] = kWide ? first : __byte_perm(first, second, 0x5410);
        q[k].pair[half + 2] = kWide ? second : __byte_perm(first, second, 0x7632);
      }
    }
    by_all = {0, 0x7FFFFFFF};
    const int last_row = at.p.queries == 1 ? first_row + 1 : min(at.rows, first_row + 16);
    for (int r = first_row; r < last_row; ++r) {
      const CachedRange of = at.seen_by(r);
      by_all = {max(by_all.begin, of.begin), min(by_all.end, of.end)};
    }
    seen[0] = at.seen_by(row);
    seen[1] = at.seen_by(row + 8);
  }

  __device__ __forceinline__ void score(const R& ring, int stage, float (&scores)[kEights][4]) const {
    const int matrix = lane_id() / 8, row = lane_id() % 8;
    const unsigned tile = ring.tile(stage, 0);
#pragma unroll
    for (int n = 0; n < kEights; ++n) scores[n][0] = scores[n][1] = scores[n][2] = scores[n][3] = 0;
#pragma unroll
    for (int k = 0; k < kDim / 16; ++k) {
      if constexpr (kWide) {
#pragma unroll
        for (int n = 0; n < kEights; n += 2) {
          const Fragment x = matrices_at(tile + R::offset(8 * n + matrix / 2 * 8 + row, 2 * k + matrix % 2));
          multiply(scores[n], q[k], x.pair[0], x.pair[1]);
          multiply(scores[n + 1], q[k], x.pair[2], x.pair[3]);
        }
      } else {
        const Fragment x = matrices_at(tile + R::offset(matrix * 8 + row, k));
#pragma unroll
        for (int n = 0; n < kEights; ++n)
          multiply(scores[n], q[k], even_pair<K>(x.pair[n]), odd_pair<K>(x.pair[n]));
      }
    }
  }

  /// Scores become weights; `first`: the tile's first key.
  __device__ __forceinline__ void soften(const R& ring, int stage, int first, float scale,
                                         float (&scores)[kEights][4]) {
    const bool all_seen = by_all.begin <= first && first + R::kKeys <= by_all.end;
    float keep[2] = {1, 1};
#pragma unroll
    for (int n = 0; n < kEights; ++n) {
      float2 of{1, 1};
      if constexpr (kKvScaled<K>) of = R::scales(ring.scales_at(stage), 0, 8 * n);
#pragma unroll
      for (int i = 0; i < 2 * kHalves; ++i) {
        scores[n][i] *= scale * (i % 2 == 0 ? of.x : of.y);
        const int key = first + 8 * n + lane_id() % 4 * 2 + i % 2;
        if (!all_seen && (key < seen[i / 2].begin || key >= seen[i / 2].end)) scores[n][i] = -INFINITY;
      }
    }
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
      float peak = maximum[half];
#pragma unroll
      for (int n = 0; n < kEights; ++n)
        peak = fmaxf(peak, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
      peak = fmaxf(peak, __shfl_xor_sync(0xFFFFFFFFu, peak, 1));
      peak = fmaxf(peak, __shfl_xor_sync(0xFFFFFFFFu, peak, 2));
      const float base = finite_base(peak);
      keep[half] = fast_power2(maximum[half] - base);
      maximum[half] = peak;
      sum[half] *= keep[half];
#pragma unroll
      for (int n = 0; n < kEights; ++n) {
#pragma unroll
        for (int i = 2 * half; i < 2 * half + 2; ++i) {
          scores[n][i] = fast_power2(scores[n][i] - base);
          sum[half] += scores[n][i];
        }
      }
    }
    if (__any_sync(0xFFFFFFFFu, keep[0] != 1 || keep[1] != 1)) {
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 2 * kHalves; ++i) sums[n][i] *= keep[i / 2];
      }
    }
  }

  /// Weights of keys 16 s to 16 s + 15 as a left operand, times the values' scales.
  static __device__ __forceinline__ Fragment weights_of(const R& ring, int stage, int s,
                                                        const float (&weights)[kEights][4]) {
    Fragment w;
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      const int n = 2 * s + m;
      float2 of{1, 1};
      if constexpr (kKvScaled<K>) of = R::scales(ring.scales_at(stage), 1, 8 * n);
      w.pair[2 * m] = pack(weights[n][0] * of.x, weights[n][1] * of.y);
      w.pair[2 * m + 1] = kUpper ? pack(weights[n][2] * of.x, weights[n][3] * of.y) : 0u;
    }
    return w;
  }

  __device__ __forceinline__ void mix(const R& ring, int stage, const float (&weights)[kEights][4]) {
    const int matrix = lane_id() / 8, row = lane_id() % 8;
    const unsigned tile = ring.tile(stage, 1);
    if constexpr (kWide) {
#pragma unroll
      for (int s = 0; s < kEights / 2; ++s) {
        const Fragment w = weights_of(ring, stage, s, weights);
#pragma unroll
        for (int d = 0; d < kDim / 16; ++d) {
          const Fragment x =
              transposed_at(tile + R::offset(16 * s + matrix % 2 * 8 + row, 2 * d + matrix / 2));
          multiply(sums[2 * d], w, x.pair[0], x.pair[1]);
          multiply(sums[2 * d + 1], w, x.pair[2], x.pair[3]);
        }
      }
    } else {
      const Fragment w[2] = {weights_of(ring, stage, 0, weights), weights_of(ring, stage, 1, weights)};
#pragma unroll
      for (int d = 0; d < kDim / 16; ++d) {
        const Fragment x = transposed_at(tile + R::offset(matrix * 8 + row, d));  // two columns an element
#pragma unroll
        for (int s = 0; s < 2; ++s) {
          multiply(sums[2 * d], w[s], even_pair<K>(x.pair[2 * s]), even_pair<K>(x.pair[2 * s + 1]));
          multiply(sums[2 * d + 1], w[s], odd_pair<K>(x.pair[2 * s]), odd_pair<K>(x.pair[2 * s + 1]));
        }
      }
    }
  }

  /// The column of sums[n][i].
  static __device__ __forceinline__ int column(int n, int i) {
    const int at = lane_id() % 4;
    return kWide ? 8 * n + 2 * at + i % 2 : 16 * (n / 2) + 4 * at + 2 * (i % 2) + n % 2;
  }

  /// Of row 8 half + lane / 4, in its four lanes.
  __device__ __forceinline__ float total(int half) const {
    float all = sum[half];
    all += __shfl_xor_sync(0xFFFFFFFFu, all, 1);
    return all + __shfl_xor_sync(0xFFFFFFFFu, all, 2);
  }
};

}  // namespace ridge::kernels::cuda
