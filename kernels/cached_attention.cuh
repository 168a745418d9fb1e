// What the GPU's kernels of attention over a cache share: the operands, what a block takes, and how warps,
// then parts of the keys, are joined in order.
//
// A block has up to 16 rows (64 of a prompt) of one key-value head of a sequence, row r = query r / share and
// query head g share + r % share, against one part of the keys, which its warps take in turns. B sequences, T
// queries, H query heads, G key-value heads, D head dim.
#pragma once

#include <cstdint>

#include "kernels/cached_attention.h"
#include "kernels/cached_attention_cut.h"
#include "kernels/device/block.cuh"
#include "kernels/device/launch.cuh"
#include "kernels/device/vec.cuh"
#include "kernels/kv_codes.h"

namespace ridge::kernels::cuda {

inline constexpr int kCachedWarps = 4;  // that read different keys
inline constexpr int kCachedThreads = 32 * kCachedWarps;
inline constexpr int kCachedRows = cached_detail::kGpuRows;
inline constexpr int kCachedWideRows = cached_detail::kGpuWideRows;

template <class T>
struct CachedParams {
  const T* q_BTHD;
  T* o_BTHD;
  const void *keys_BSGD, *values_BSGD;
  const float *key_scales_BSG, *value_scales_BSG;  // null without scales
  const std::int32_t* positions_BT;
  unsigned* counters;                      // [B, row blocks, G]: parts that are done; 0 between launches
  float *part_sums, *part_max, *part_sum;  // [B, row blocks, G, most parts, rows] x [D], [], []
  std::int64_t q_stride[3], o_stride[3];   // B, T, H
  std::int64_t capacity;
  int window, table;                            // table: positions are below it
  unsigned queries, groups, share, row_blocks;  // 32 bits, for quick divisions
  int rows, head_dim;                           // rows: of a block's results
  float scale;                                  // to the base 2
  cached_detail::CutRule rule;
};

/// The keys begin <= j < end.
struct CachedRange {
  int begin, end;
};

/// What a block takes.
template <class T>
struct CachedBlock {
  const CachedParams<T>& p;
  unsigned b, g, first_row;
  int rows, part, parts;
  std::int64_t block;  // of rows, among all
  CachedRange span;    // what some row sees
  CachedRange keys;    // of the part

  __device__ __forceinline__ CachedRange seen_from(unsigned query) const {
    const int position = p.positions_BT[static_cast<std::int64_t>(b) * p.queries + query];
    if (position < 0 || position >= p.table) return {0, 0};
    return {cached_detail::first_key(position, p.window), position + 1};
  }
  /// A single query needs no division.
  __device__ __forceinline__ unsigned query_of(int r) const {
    return p.queries == 1 ? 0 : (first_row + static_cast<unsigned>(r)) / p.share;
  }

  __device__ CachedBlock(const CachedParams<T>& params, int most_rows) : p(params), b(blockIdx.y) {
    const unsigned rest = blockIdx.x / p.groups;
    g = blockIdx.x - rest * p.groups;  // neighbours read keys that lie side by side
    part = static_cast<int>(p.row_blocks == 1 ? rest : rest / p.row_blocks);
    const unsigned rb = rest - static_cast<unsigned>(part) * p.row_blocks;
    first_row = rb * static_cast<unsigned>(most_rows);
    rows = static_cast<int>(min(p.queries * p.share - first_row, static_cast<unsigned>(most_rows)));
    block = (static_cast<std::int64_t>(b) * p.row_blocks + rb) * p.groups + g;
    span = {cached_detail::kMostKeys, 0};
    for (unsigned t = query_of(0); t <= query_of(rows - 1); ++t) {
      const CachedRange of = seen_from(t);
      if (of.end > 0) span = {min(span.begin, of.begin), max(span.end, of.end)};
    }
    const cached_detail::KeyCut cut(span.begin, span.end, p.rule);
    parts = cut.parts;
    keys = {cut.part_begin(part), cut.part_end(part)};
  }

  /// What row r sees of the part: nothing beyond the last row.
  __device__ __forceinline__ CachedRange seen_by(int r) const {
    if (r >= rows) return {0, 0};
    const CachedRange of = p.queries == 1 ? span : seen_from(query_of(r));
    return {max(of.begin, keys.begin), min(of.end, keys.end)};
  }
  template <class U>
  __device__ __forceinline__ U* row_of(U* data, const std::int64_t (&stride)[3], int r) const {
    const unsigned t = query_of(r), h = g * p.share + first_row + static_cast<unsigned>(r) - t * p.share;
    return data + b * stride[0] + t * stride[1] + h * stride[2];
  }
  __device__ __forceinline__ const T* q_row(int r) const { return row_of(p.q_BTHD, p.q_stride, r); }
  __device__ __forceinline__ T* o_row(int r) const { return row_of(p.o_BTHD, p.o_stride, r); }
};

/// What the warps of a block have, in its shared memory; later the parts' factors.
struct WarpResults {
  float *sums, *maximum, *sum;  // [warps, rows, D], [warps, rows], [warps, rows]

  __device__ WarpResults(void* memory, int head_dim)
      : sums(static_cast<float*>(memory)),
        maximum(sums + kCachedWarps * kCachedRows * head_dim),
        sum(maximum + kCachedWarps * kCachedRows) {}
  static std::int64_t bytes(std::int64_t head_dim) {
    const std::int64_t results = kCachedWarps * kCachedRows * (head_dim + 2),
                       factors = cached_detail::kGpuUnits * kCachedRows;
    return 4 * (results > factors ? results : factors);
  }
};

__device__ __forceinline__ float finite_base(float maximum) { return maximum == -INFINITY ? 0.0f : maximum; }
__device__ __forceinline__ float inverse_sum(float sum) { return sum == 0 ? 0.0f : 1 / sum; }
/// 2^x; 0 for -inf.
__device__ __forceinline__ float fast_power2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// A block without keys writes zeros.
template <class T>
__device__ void write_zeros(const CachedBlock<T>& at) {
  const int D = at.p.head_dim;
  for (int i = static_cast<int>(threadIdx.x); i < at.rows * D; i += kCachedThreads)
    at.o_row(i / D)[i % D] = device::round_to<T>(0.0f);
}

/// Whether this block is the last of its parts to get here; then it sees what the others wrote.
template <class T>
__device__ bool last_of_parts(const CachedBlock<T>& at) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    last = atomicAdd(at.p.counters + at.block, 1u) + 1 == static_cast<unsigned>(at.parts);
    if (last) at.p.counters[at.block] = 0;
  }
  __syncthreads();
  __threadfence();
  return last;
}

/// factors[part, r] = the share of a part's sums in o.
template <class T>
__device__ void part_factors(const CachedBlock<T>& at, float* factors) {
  const CachedParams<T>& p = at.p;
  const std::int64_t first = at.block * p.rule.most * p.rows;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int r = static_cast<int>(threadIdx.x) / 32; r < at.rows; r += kCachedWarps) {
    float peak = -INFINITY, total = 0;
    for (int i = lane; i < at.parts; i += 32) {
      const float of = __ldcg(p.part_max + first + i * p.rows + r);
      factors[i * p.rows + r] = of;
      peak = of > peak ? of : peak;
    }
    const float base = finite_base(device::warp_all<device::Max>(peak));
    for (int i = lane; i < at.parts; i += 32) {
      const float factor = exp2f(factors[i * p.rows + r] - base);
      factors[i * p.rows + r] = factor;
      total += factor * __ldcg(p.part_sum + first + i * p.rows + r);
    }
    const float inverse = inverse_sum(device::warp_all<device::Sum>(total));
    for (int i = lane; i < at.parts; i += 32) factors[i * p.rows + r] *= inverse;
  }
}

template <int N, class T>
__device__ __forceinline__ void join_parts(const CachedBlock<T>& at, int D, const float* factors) {
  const CachedParams<T>& p = at.p;
  const std::int64_t step = static_cast<std::int64_t>(p.rows) * D;
  const float* sums = p.part_sums + at.block * p.rule.most * step;
  for (int i = static_cast<int>(threadIdx.x) * N; i < at.rows * D; i += kCachedThreads * N) {
    const int r = i / D;
    float o[N] = {};
#pragma unroll 8
    for (int part = 0; part < at.parts; ++part) {
      const float factor = factors[part * p.rows + r];
      if constexpr (N == 4) {
        const float4 x = __ldcg(reinterpret_cast<const float4*>(sums + part * step + i));
        o[0] += x.x * factor, o[1] += x.y * factor, o[2] += x.z * factor, o[3] += x.w * factor;
      } else {
        o[0] += __ldcg(sums + part * step + i) * factor;
      }
    }
    T* to = at.o_row(r) + i % D;
#pragma unroll
    for (int k = 0; k < N; ++k) to[k] = device::round_to<T>(o[k]);
  }
}

/// Joins the warps of a block; writes o, or the part's results, and then o where it is the last part's.
template <class T>
__device__ __forceinline__ void finish_block(const CachedBlock<T>& at, int D, const WarpResults& of) {
  const CachedParams<T>& p = at.p;
  const std::int64_t first = (at.block * p.rule.most + at.part) * p.rows;
  for (int i = static_cast<int>(threadIdx.x); i < at.rows * D; i += kCachedThreads) {
    const int r = i / D, d = i % D;
    float peak = -INFINITY, value = 0, total = 0;
#pragma unroll
    for (int w = 0; w < kCachedWarps; ++w) peak = fmaxf(peak, of.maximum[w * kCachedRows + r]);
    const float base = finite_base(peak);
#pragma unroll
    for (int w = 0; w < kCachedWarps; ++w) {
      const float take = exp2f(of.maximum[w * kCachedRows + r] - base);
      value += of.sums[(w * kCachedRows + r) * D + d] * take;
      total += of.sum[w * kCachedRows + r] * take;
    }
    if (at.parts == 1) {
      at.o_row(r)[d] = device::round_to<T>(value * inverse_sum(total));
    } else {
      p.part_sums[(first + r) * D + d] = value;
      if (d == 0) p.part_max[first + r] = peak;
      if (d == 0) p.part_sum[first + r] = total;
    }
  }
  if (at.parts == 1 || !last_of_parts(at)) return;
  float* factors = of.sums;
  part_factors(at, factors);
  __syncthreads();
  D % 4 == 0 ? join_parts<4>(at, D, factors) : join_parts<1>(at, D, factors);
}

/// Blocks for every part that a position below `table` may have.
template <class T>
dim3 cached_grid(const CachedParams<T>& p, std::int64_t batch) {
  const int span = p.window > 0 && p.queries == 1 ? std::min(p.table, p.window) : p.table;
  const auto parts = static_cast<unsigned>(cached_detail::parts_below(span, p.rule));
  return {parts * p.groups * p.row_blocks, static_cast<unsigned>(batch), 1};
}

/// On tensor cores: bf16 queries in pairs, D 64 or 128, a cache of 8 or 16 bits.
bool cached_mma_takes(const CachedParams<bf16>& params, KvFormat format);
/// Up to kCachedRows rows a block (cached_attention_mma.cu).
void launch_cached_mma(const Stream& stream, const CachedParams<bf16>& params, KvFormat format, dim3 grid);
/// Up to kCachedWideRows rows a block (cached_attention_wide.cu).
void launch_cached_wide(const Stream& stream, const CachedParams<bf16>& params, KvFormat format, dim3 grid);

}  // namespace ridge::kernels::cuda
