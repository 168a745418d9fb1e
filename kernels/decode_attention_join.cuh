// Sums of a block's warps become the part's, those of parts o: by the blocks of a cluster, each of which has
// some columns of all warps, or by the last block of a head to be done. Both add in the same order: a part's
// warps, then parts 8 i + s for each s, then the eight in pairs.
#pragma once

#include "kernels/decode_attention.cuh"
#include "kernels/device/cluster.cuh"
#include "kernels/device/mbarrier.cuh"

namespace ridge::kernels::cuda {

__device__ __forceinline__ void scale_add(float4& sum, float4 x, float factor) {
  sum.x += x.x * factor, sum.y += x.y * factor, sum.z += x.z * factor, sum.w += x.w * factor;
}
/// Of two rows, two columns each.
__device__ __forceinline__ void scale_add(float4& sum, float4 x, float first, float second) {
  sum.x += x.x * first, sum.y += x.y * second, sum.z += x.z * first, sum.w += x.w * second;
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

/// What the cluster's warps have of 16 columns, in a block's shared memory: a barrier; [warps, pairs of rows,
/// 2, parts, 4] fours, of two rows two columns each; [warps, pairs, parts] fours, of two rows the maximum and
/// the sum of weights. Sums are added as DecodeWarps and DecodeParts add them.
template <class K, int kDim>
struct DecodeExchange {
  using Rows = DecodeRows<K, kDim>;
  static constexpr int kColumns = 16, kSlices = kDim / kColumns, kParts = decode_detail::kClusterParts,
                       kWarps = decode_detail::kPartWarps;
  static_assert(kSlices <= kParts && kParts == 8);
  unsigned at;  // the same in each block
  int share;

  static constexpr int pairs(int share) { return (share + 1) / 2; }
  /// That come to a block.
  static constexpr int sent(int share) { return kWarps * kParts * pairs(share) * (8 + 1) * 16; }
  static constexpr int bytes(int share) { return 128 + sent(share); }

  /// One thread, before the cluster's blocks meet.
  __device__ __forceinline__ void begin() const {
    device::begin_barrier(at, 1);
    device::fence_barriers();
    device::arrive_expecting(at, sent(share));
  }
  /// Of warp `warp` of part `part`, rows 2 pair and 2 pair + 1.
  __device__ __forceinline__ unsigned sums(int part, int warp, int pair, int column) const {
    const int half = (warp * pairs(share) + pair) * 2 + column / 4;
    return at + static_cast<unsigned>(128 + ((half * kParts + part) * 4 + column % 4) * 16);
  }
  __device__ __forceinline__ unsigned peaks(int part, int warp, int pair) const {
    const int before = kWarps * kParts * pairs(share) * 8 + (warp * pairs(share) + pair) * kParts;
    return at + static_cast<unsigned>(128 + (before + part) * 16);
  }

  /// This warp's, of part `part`, to the blocks that have the columns.
  __device__ __forceinline__ void send(const Rows& rows, int part) const {
    const float total[2] = {over_rows(rows.sum[0], device::Sum{}), over_rows(rows.sum[1], device::Sum{})};
    const int pair = lane_id() % 4, column = lane_id() / 4;
    if (pair >= pairs(share)) return;
    const unsigned to = sums(part, warp_id(), pair, column);
#pragma unroll
    for (int n = 0; n < kSlices; ++n)
      device::send_there(device::shared_of(to, n), device::shared_of(at, n), rows.sums[n]);
    if (column < kSlices) {
      const float all[4] = {rows.peak[0], total[0], rows.peak[1], total[1]};
      device::send_there(device::shared_of(peaks(part, warp_id(), pair), column),
                         device::shared_of(at, column), all);
    }
  }

  static __device__ __forceinline__ float4 load(unsigned from) {
    float4 x;
    asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w)
                 : "r"(from)
                 : "memory");
    return x;
  }
  /// Columns number `column` of a part, of two rows, and their maxima and sums of weights.
  __device__ __forceinline__ float4 part(int which, int pair, int column, float2 (&of)[2]) const {
    float4 peak[kWarps], all{0, 0, 0, 0};
    of[0] = of[1] = {-INFINITY, 0};
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      peak[w] = load(peaks(which, w, pair));
      of[0].x = fmaxf(of[0].x, peak[w].x), of[1].x = fmaxf(of[1].x, peak[w].z);
    }
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const float first = fast_power2(peak[w].x - finite_base(of[0].x)),
                  second = fast_power2(peak[w].z - finite_base(of[1].x));
      of[0].y += first * peak[w].y, of[1].y += second * peak[w].w;
      scale_add(all, load(sums(which, w, pair, column)), first, second);
    }
    return all;
  }
  /// The columns of slice `slice` of o, when all have come: lane l has part l / 4.
  __device__ __forceinline__ void join(const DecodeBlock& block, int slice) const {
    device::await_cluster(at, 0);
    for (int job = warp_id(); job < 2 * pairs(share); job += kWarps) {
      const int pair = job / 2, column = job % 2 * 4 + lane_id() % 4;
      float2 of[2];
      const float4 x = part(lane_id() / 4, pair, column, of);
      float factor[2], sum[2];
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        factor[r] = fast_power2(of[r].x - finite_base(over_rows(of[r].x, device::Max{})));
        sum[r] = over_rows(__fmul_rn(factor[r], of[r].y), device::Sum{});
      }
      float4 all{0, 0, 0, 0};
      scale_add(all, x, factor[0], factor[1]);
      all = {over_rows(all.x, device::Sum{}), over_rows(all.y, device::Sum{}),
             over_rows(all.z, device::Sum{}), over_rows(all.w, device::Sum{})};
      const int r = lane_id() / 4;  // lanes of the first parts write, a row each
      if (r >= 2 || 2 * pair + r >= share) continue;
      const float by = inverse_sum(r == 0 ? sum[0] : sum[1]);
      bf16* to = block.o_of(2 * pair + r, kDim) + slice * kColumns + (Rows::kWide ? 1 : 2) * column;
      to[0] = device::round_to<bf16>((r == 0 ? all.x : all.y) * by);
      to[Rows::kNext] = device::round_to<bf16>((r == 0 ? all.z : all.w) * by);
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
