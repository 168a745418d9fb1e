// Forward in bf16 on tensor cores, for any lengths and offsets (Dao, FlashAttention-2, 2023): a warp has 16
// rows, and keeps their scores, weights and sums in registers. Values arrive while scores are made, keys
// while values are used.
#include "kernels/attention_forward.cuh"
#include "kernels/attention_mma.cuh"

namespace ridge::kernels::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kRows = 16 * kWarps;
constexpr int kKeys = 64;  // a tile

// Warps read rows of 16 bytes from 8 rows at once: the padding spreads them over all banks.
template <int kDim>
inline constexpr int kStride = kDim + 8;

__device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x) % 32; }

// 64 rows of D elements; zeros beyond `count` rows and beyond D.
template <int kDim>
__device__ __forceinline__ void start_copy(bf16* tile, const bf16* from, std::int64_t stride, int count,
                                           int head_dim) {
  constexpr int kPieces = kDim / 8;
#pragma unroll 4
  for (int i = static_cast<int>(threadIdx.x); i < kRows * kPieces; i += 32 * kWarps) {
    const int row = i / kPieces, d = i % kPieces * 8;
    const bool inside = row < count && d < head_dim;
    copy_async(tile + row * kStride<kDim> + d, inside ? from + row * stride + d : from, inside);
  }
}

// What a warp has: rows lane / 4 and lane / 4 + 8 of its 16; of 8 columns the pair 2 (lane % 4).
template <int kDim>
struct WarpRows {
  static constexpr bool kHoldsQueries = kDim <= 128;  // in registers
  Fragment queries[kHoldsQueries ? kDim / 16 : 1];
  float sums[kDim / 8][4], maximum[2], sum[2];

  __device__ void clear() {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      maximum[i] = nothing<float>();
      sum[i] = 0;
    }
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) sums[n][e] = 0;
    }
  }
  static __device__ Fragment query(const bf16* q, int d) {
    return load_matrices(q + lane() % 16 * kStride<kDim> + d + lane() / 16 * 8);
  }
  __device__ void hold_queries(const bf16* q) {
    if constexpr (kHoldsQueries) {
#pragma unroll
      for (int d = 0; d < kDim; d += 16) queries[d / 16] = query(q, d);
    }
  }

  // scores[n] = q k^T for keys 8 n .. 8 n + 7 of the tile.
  __device__ void dot(const bf16* q, const bf16* keys, int head_dim, float (&scores)[kKeys / 8][4]) const {
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) scores[n][e] = 0;
    }
    const bf16* row = keys + (lane() / 16 * 8 + lane() % 8) * kStride<kDim> + lane() / 8 % 2 * 8;
#pragma unroll
    for (int d = 0; d < kDim; d += 16) {
      if (d >= head_dim) continue;
      Fragment left;
      if constexpr (kHoldsQueries) {
        left = queries[d / 16];
      } else {
        left = query(q, d);
      }
#pragma unroll
      for (int n = 0; n < kKeys / 8; n += 2) {
        const Fragment right = load_matrices(row + n * 8 * kStride<kDim> + d);
        multiply(scores[n], left, right.pair[0], right.pair[1]);
        multiply(scores[n + 1], left, right.pair[2], right.pair[3]);
      }
    }
  }

  // Scores become weights.
  __device__ void soften(float (&scores)[kKeys / 8][4], std::int64_t first, const Seen (&seen)[2], bool full,
                         float scale) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float peak = maximum[i];
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& score = scores[n][2 * i + e];
          const bool visible = full || seen[i].has(first + 8 * n + 2 * (lane() % 4) + e);
          score = visible ? score * scale : nothing<float>();
          peak = score > peak ? score : peak;
        }
      }
      peak = fold(peak, device::Max());
      const float base = peak == nothing<float>() ? 0 : peak, keep = power2(maximum[i] - base);
      maximum[i] = peak;
      float total = 0;
#pragma unroll
      for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& score = scores[n][2 * i + e];
          score = power2(score - base);
          total += score;
        }
      }
      sum[i] = sum[i] * keep + fold(total, device::Sum());
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
        sums[n][2 * i] *= keep;
        sums[n][2 * i + 1] *= keep;
      }
    }
  }

  // sums += weights times values; a pair of score columns is a pair of the left operand's.
  __device__ void mix(const float (&weights)[kKeys / 8][4], const bf16* values, int head_dim) {
    const bf16* row = values + lane() % 16 * kStride<kDim> + lane() / 16 * 8;
#pragma unroll
    for (int k = 0; k < kKeys / 8; k += 2) {
      const Fragment left{{pack(weights[k][0], weights[k][1]), pack(weights[k][2], weights[k][3]),
                           pack(weights[k + 1][0], weights[k + 1][1]),
                           pack(weights[k + 1][2], weights[k + 1][3])}};
#pragma unroll
      for (int d = 0; d < kDim; d += 16) {
        if (d >= head_dim) continue;
        const Fragment right = load_transposed(row + k * 8 * kStride<kDim> + d);
        multiply(sums[d / 8], left, right.pair[0], right.pair[1]);
        multiply(sums[d / 8 + 1], left, right.pair[2], right.pair[3]);
      }
    }
  }

  // Row i of this lane; t is its query.
  __device__ void write(const ForwardParams<bf16>& p, const TileUnit& unit, std::int64_t t, int i) const {
    const int first = 2 * (lane() % 4);
    const float factor = inverse(sum[i]);
    float* partial = p.partial == nullptr ? nullptr : p.partial_row(unit.b, unit.h, t, unit.part);
    bf16* row = p.o.row(unit.b, t, unit.h);
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
      const int d = 8 * n + first;
      const float low = sums[n][2 * i], high = sums[n][2 * i + 1];
      if (partial != nullptr) {
        if (d < p.head_dim) partial[d] = low;
        if (d + 1 < p.head_dim) partial[d + 1] = high;
      } else if (p.o.vectors) {  // and an even head dim
        if (d < p.head_dim) *reinterpret_cast<unsigned*>(row + d) = pack(low * factor, high * factor);
      } else {
        if (d < p.head_dim) row[d] = device::round_to<bf16>(low * factor);
        if (d + 1 < p.head_dim) row[d + 1] = device::round_to<bf16>(high * factor);
      }
    }
    if (first != 0) return;
    if (partial == nullptr) return p.store_lse(unit.b, unit.h, t, maximum[i], sum[i]);
    partial[p.head_dim] = maximum[i];
    partial[p.head_dim + 1] = sum[i];
  }

 private:
  // Over the 4 lanes that share rows.
  template <class Op>
  static __device__ float fold(float value, Op op) {
    value = op(value, __shfl_xor_sync(0xFFFFFFFFu, value, 1));
    return op(value, __shfl_xor_sync(0xFFFFFFFFu, value, 2));
  }
};

// One block: a tile of one head's queries against one part of the keys.
template <int kDim>
__global__ void __launch_bounds__(32 * kWarps) forward_mma(const ForwardParams<bf16> p) {
  extern __shared__ __align__(16) unsigned char memory[];
  bf16* q = reinterpret_cast<bf16*>(memory);    // [64, D]
  bf16* keys = q + kRows * kStride<kDim>;       // [64, D]
  bf16* values = keys + kKeys * kStride<kDim>;  // [64, D]
  const TileUnit unit = p.tile_unit(blockIdx.x, kRows);
  const int warp_row = static_cast<int>(threadIdx.x) / 32 * 16;
  const std::int64_t row = unit.first + warp_row + lane() / 4;
  const Seen first = p.clipped(unit.first, unit.part),
             last = p.clipped(unit.first + unit.count - 1, unit.part);
  const Seen seen[2] = {p.clipped(row, unit.part), p.clipped(row + 8, unit.part)};
  const std::int64_t begin = first.begin, end = last.end;

  const auto copy_keys = [&](bf16* tile, const Heads<const bf16>& from, std::int64_t key) {
    const int count = static_cast<int>(min(end - key, std::int64_t{kKeys}));
    start_copy<kDim>(tile, from.row(unit.b, key, unit.g), from.token, count, p.head_dim);
  };
  WarpRows<kDim> rows;
  rows.clear();
  if (begin < end) {
    start_copy<kDim>(q, p.q.row(unit.b, unit.first, unit.h), p.q.token, unit.count, p.head_dim);
    copy_keys(keys, p.k, begin);
  }
  for (std::int64_t key = begin; key < end; key += kKeys) {
    wait_for_copies();
    __syncthreads();  // the keys are there, the values before have been read
    copy_keys(values, p.v, key);
    if (key == begin) rows.hold_queries(q + warp_row * kStride<kDim>);
    float scores[kKeys / 8][4];
    rows.dot(q + warp_row * kStride<kDim>, keys, p.head_dim, scores);
    const bool full = last.begin <= key && key + kKeys <= first.end;
    rows.soften(scores, key, seen, full, p.scale);
    wait_for_copies();
    __syncthreads();  // the values are there, the keys have been read
    if (key + kKeys < end) copy_keys(keys, p.k, key + kKeys);
    rows.mix(scores, values, p.head_dim);
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    if (row + 8 * i < unit.first + unit.count) rows.write(p, unit, row + 8 * i, i);
  }
}

}  // namespace

void launch_forward_mma(const Stream& stream, ForwardParams<bf16> params) {
  params.blocks = device::ceil_div(params.mask.queries, kRows);
  visit_head_dim(params.head_dim, [&](auto dim) {
    constexpr int kDim = decltype(dim)::value;
    constexpr int kBytes = (kRows + 2 * kKeys) * kStride<kDim> * static_cast<int>(sizeof(bf16));
    const std::int64_t blocks = params.batch * params.heads * params.blocks * params.parts;
    launch_tiles(forward_mma<kDim>, blocks, 32 * kWarps, kBytes, stream, params);
  });
}

}  // namespace ridge::kernels::cuda
