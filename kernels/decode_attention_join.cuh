// Sums of a block's warps become the part's, those of parts o: by the blocks of a cluster, each of which has
// some columns, or by the last block of a head to be done. Both add in the same order: parts 8 i + s for each
// s, then the eight in pairs.
#pragma once

#include "kernels/decode_attention.cuh"
#include "kernels/device/cluster.cuh"

namespace ridge::kernels::cuda {

__device__ __forceinline__ void scale_add(float4& sum, float4 x, float factor) {
  sum.x += x.x * factor, sum.y += x.y * factor, sum.z += x.z * factor, sum.w += x.w * factor;
}
__device__ __forceinline__ float4 added(float4 a, float4 b) {
  return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w};
}
__device__ __forceinline__ void write_four(bf16* to, float4 x, float factor) {
  *reinterpret_cast<uint2*>(to) = {pack(x.x * factor, x.y * factor), pack(x.z * factor, x.w * factor)};
}

/// What the warps of a block have, in its shared memory.
template <int kDim>
struct DecodeWarps {
  static constexpr int kWarps = decode_detail::kPartWarps, kStep = kDim + 8;  // floats; rows in other banks
  float* sums;                                                                // [warps, share, kStep]
  float2* peaks;  // [warps, share]: maximum, sum of weights
  int share;

  static constexpr int bytes(int share) { return kWarps * share * (kStep + 2) * 4; }
  __device__ DecodeWarps(void* memory, int rows)
      : sums(static_cast<float*>(memory)),
        peaks(reinterpret_cast<float2*>(sums + kWarps * rows * kStep)),
        share(rows) {}

  template <class Rows>
  __device__ __forceinline__ void write(const Rows& rows) const {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = 2 * (lane_id() % 4) + r, at = warp_id() * share + row;
      const float total = over_rows(rows.sum[r], device::Sum{});
      if (row >= share) continue;
      if (lane_id() < 4) peaks[at] = {rows.peak[r], total};
#pragma unroll
      for (int n = 0; n < kDim / 16; ++n) {
        sums[at * kStep + Rows::column(n)] = rows.sums[n][r];
        sums[at * kStep + Rows::column(n) + Rows::kNext] = rows.sums[n][2 + r];
      }
    }
  }
  /// Four columns of the part, and its maximum and sum of weights.
  __device__ __forceinline__ float4 part(int row, int column, float2& of) const {
    of = {-INFINITY, 0};
#pragma unroll
    for (int w = 0; w < kWarps; ++w) of.x = fmaxf(of.x, peaks[w * share + row].x);
    float4 all{0, 0, 0, 0};
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const float2 warp = peaks[w * share + row];
      const float factor = fast_power2(warp.x - finite_base(of.x));
      of.y += factor * warp.y;
      scale_add(all, *reinterpret_cast<const float4*>(sums + (w * share + row) * kStep + column), factor);
    }
    return all;
  }
};

/// 16 columns of every part of the cluster, in a block's shared memory: [parts, share, 16], then [parts,
/// share] pairs of maximum and sum of weights.
template <int kDim>
struct DecodeExchange {
  static constexpr int kColumns = 16, kSlices = kDim / kColumns, kParts = decode_detail::kClusterParts;
  static_assert(kSlices <= kParts && kParts == 8);
  unsigned at;  // the same in each block
  int share;

  static constexpr int bytes(int share) { return (kParts * share * (kColumns + 2) * 4 + 127) / 128 * 128; }
  __device__ __forceinline__ unsigned sums(int part, int row) const {
    return at + static_cast<unsigned>((part * share + row) * kColumns * 4);
  }
  __device__ __forceinline__ unsigned peak(int part, int row) const {
    return at + static_cast<unsigned>(kParts * share * kColumns * 4 + (part * share + row) * 8);
  }

  /// Part `part` to the blocks that have its columns.
  __device__ __forceinline__ void send(const DecodeWarps<kDim>& warps, int part) const {
    const int all = 4 * share;  // fours of columns a slice
    for (int i = static_cast<int>(threadIdx.x); i < kSlices * all; i += static_cast<int>(blockDim.x)) {
      const int slice = i / all, row = i % all / 4, column = i % 4 * 4;
      float2 of;
      const float4 x = warps.part(row, kColumns * slice + column, of);
      const auto to = static_cast<unsigned>(slice);
      device::store_there(device::shared_of(sums(part, row), to) + static_cast<unsigned>(4 * column), x.x,
                          x.y, x.z, x.w);
      if (column == 0) device::store_there(device::shared_of(peak(part, row), to), of.x, of.y);
    }
  }

  __device__ __forceinline__ float2 peak_of(int part, int row) const {
    float2 x;
    asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(x.x), "=f"(x.y) : "r"(peak(part, row)) : "memory");
    return x;
  }
  __device__ __forceinline__ float4 sums_of(int part, int row, int column) const {
    float4 x;
    asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w)
                 : "r"(sums(part, row) + static_cast<unsigned>(4 * column))
                 : "memory");
    return x;
  }

  /// The columns of slice `slice` of o: lane l has part l / 4, and columns 4 (l % 4) and on.
  __device__ __forceinline__ void join(const DecodeBlock& block, int slice) const {
    for (int row = warp_id(); row < share; row += decode_detail::kPartWarps) {
      const int part = lane_id() / 4, column = 4 * (lane_id() % 4);
      const float2 of = peak_of(part, row);
      const float4 x = sums_of(part, row, column);
      const float factor = fast_power2(of.x - finite_base(over_rows(of.x, device::Max{})));
      const float sum = over_rows(__fmul_rn(factor, of.y), device::Sum{});
      float4 all{0, 0, 0, 0};
      scale_add(all, x, factor);
#pragma unroll
      for (int lanes = 4; lanes < 32; lanes *= 2) {
        all = added(all,
                    {__shfl_xor_sync(0xFFFFFFFFu, all.x, lanes), __shfl_xor_sync(0xFFFFFFFFu, all.y, lanes),
                     __shfl_xor_sync(0xFFFFFFFFu, all.z, lanes), __shfl_xor_sync(0xFFFFFFFFu, all.w, lanes)});
      }
      if (lane_id() < 4) write_four(block.o_of(row, kDim) + slice * kColumns + column, all, inverse_sum(sum));
    }
  }
};

/// What a head's parts have, in the scratch.
template <int kDim>
struct DecodeParts {
  static constexpr int kMost = decode_detail::kMostParts, kAtOnce = 32;
  const DecodeBlock& at;
  float* sums;
  float2* peaks;

  explicit __device__ DecodeParts(const DecodeBlock& block) : at(block) {
    const std::int64_t head = static_cast<std::int64_t>(at.b) * at.p.groups + at.g,
                       first = head * decode_detail::most_parts(at.p.groups) * at.p.share;
    sums = at.p.part_sums + first * kDim;
    peaks = at.p.part_peaks + first;
  }
  __device__ __forceinline__ float4* sums_of(int part, int row, int column) const {
    return reinterpret_cast<float4*>(sums + (part * at.p.share + row) * kDim + column);
  }

  __device__ __forceinline__ void write(const DecodeWarps<kDim>& warps) const {
    for (int i = 4 * static_cast<int>(threadIdx.x); i < at.p.share * kDim;
         i += 4 * static_cast<int>(blockDim.x)) {
      const int row = i / kDim, column = i % kDim;
      float2 of;
      __stcg(sums_of(at.part, row, column), warps.part(row, column, of));
      if (column == 0) __stcg(peaks + at.part * at.p.share + row, of);
    }
  }

  /// Whether this block is the last of its head's; then it sees what the others wrote.
  __device__ bool is_last() const {
    __shared__ bool last;
    __syncthreads();
    if (threadIdx.x == 0) {
      unsigned *counter = at.p.counters + at.b * at.p.groups + at.g, before;
      asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], 1;" : "=r"(before) : "l"(counter) : "memory");
      last = static_cast<int>(before) + 1 == at.cut.parts;
      if (last) *counter = 0;
    }
    __syncthreads();
    return last;
  }

  /// o of all columns, a row a warp.
  __device__ __forceinline__ void join() const {
    const int parts = at.cut.parts, column = 4 * lane_id() < kDim ? 4 * lane_id() : 0;
    for (int row = warp_id(); row < at.p.share; row += decode_detail::kPartWarps) {
      float2 of[kMost / kAtOnce];  // lane l has parts l + 32 i
      float most = -INFINITY;
#pragma unroll
      for (int i = 0; i < kMost / kAtOnce; ++i) {
        const int part = lane_id() + kAtOnce * i;
        of[i] = {-INFINITY, 0};
        if (part < parts) of[i] = __ldcg(peaks + part * at.p.share + row);
        most = of[i].x > most ? of[i].x : most;
      }
      float4 sums_8[8] = {};
      float weights_8[8] = {};
#pragma unroll
      for (int batch = 0; batch < kMost / kAtOnce; ++batch) {
        if (batch * kAtOnce >= parts) break;
        float4 x[kAtOnce];
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i)  // all under way before the first is needed
          x[i] = __ldcg(sums_of(min(batch * kAtOnce + i, parts - 1), row, column));
        if (batch == 0) most = finite_base(device::warp_all<device::Max>(most));
        const float factor = fast_power2(of[batch].x - most), weight = __fmul_rn(factor, of[batch].y);
#pragma unroll
        for (int i = 0; i < kAtOnce; ++i) {  // parts that are not there weigh 0
          scale_add(sums_8[i % 8], x[i], __shfl_sync(0xFFFFFFFFu, factor, i));
          weights_8[i % 8] += __shfl_sync(0xFFFFFFFFu, weight, i);
        }
      }
#pragma unroll
      for (int step = 1; step < 8; step *= 2) {
#pragma unroll
        for (int s = 0; s < 8; s += 2 * step) {
          sums_8[s] = added(sums_8[s], sums_8[s + step]);
          weights_8[s] += weights_8[s + step];
        }
      }
      if (4 * lane_id() < kDim) write_four(at.o_of(row, kDim) + column, sums_8[0], inverse_sum(weights_8[0]));
    }
  }
};

}  // namespace ridge::kernels::cuda
