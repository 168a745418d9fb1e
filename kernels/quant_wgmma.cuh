// Some rows of x in bf16 times codes: a block has up to 256 rows of w, and its groups of four warps multiply
// 64 of them at a time. Codes become the operand in registers; x is the one in shared memory, brought by four
// more warps, slab after slab.
//
// A cluster's blocks share the slabs of their rows and add up through each other's shared memory, each for
// its rows of x. The cut into slabs depends on N and K alone: the bits of a row of y are the same for any M
// that these kernels take.
//
// Shapes as in quant_wgmma_params.cuh.
#pragma once

#include "core/base/cuda_check.h"
#include "kernels/device/overlap.cuh"
#include "kernels/device/tensor_map.h"
#include "kernels/quant_wgmma_feed.cuh"

namespace ridge::kernels::cuda {

/// A warp's strips of 16 rows. Of two, one is multiplied while the other's codes become operands.
template <class Format, int kX>
struct WgmmaWorker {
  using Block = WgmmaBlock<Format, kX>;
  static constexpr bool kGroups = Format::kGroup != 0;
  static constexpr int kMostPairs = kX <= 32 ? 4 : 1;  // of steps, at a time: as many as registers hold
  static constexpr int kPairs = std::min(kMostPairs, kGroups ? Format::kGroup : Format::kBatches);
  using Operands = device::StepPair[kPairs];
  const Block& block;
  int warp, lane;
  WgmmaScaleReader<Format, kX> reader;
  WgmmaCodes<Format, kX> codes;
  RingPlace x_place;
  std::uint32_t column;
  float sum[kStrips<kX>][kX / 2], total[kStrips<kX>][kGroups ? kX / 2 : 1], scale[kStrips<kX>][2];
  std::uint32_t bias[kStrips<kX>][2], nan[kStrips<kX>][2];

  __device__ __forceinline__ WgmmaWorker(const Block& b, int thread)
      : block(b), warp(thread / 32), lane(thread % 32), reader(b, lane), codes(b, warp, lane) {
    enter(block.first_tile);
    column = Format::kTable ? device::pair_table(block.memory) + 4 * static_cast<std::uint32_t>(lane) : 0;
  }

  __device__ __forceinline__ void enter(int tile) {
    constexpr int kUnits = kGroups ? Format::kBatches / Format::kGroup : 1;
    if (tile < block.p.tiles) reader.enter(block.first_row(tile, warp), kGroups ? block.begin * kUnits : 0);
  }
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int t = 0; t < kStrips<kX>; ++t) {
      nan[t][0] = nan[t][1] = 0;
      bias[t][0] = bias[t][1] = 0x43084308u;  // 128 + 8
#pragma unroll
      for (int i = 0; i < kX / 2; ++i) {
        sum[t][i] = 0;
        if constexpr (kGroups) total[t][i] = 0;
      }
    }
  }

  // Column 8 i + 2 (lane % 4) + j of x and row lane / 4 + 8 h are number 4 i + 2 h + j.
  __device__ __forceinline__ void apply_scale(int t) {
    device::keep(sum[t]);
#pragma unroll
    for (int i = 0; i < kX / 2; ++i) {
      if constexpr (kGroups) {
        total[t][i] = fmaf(scale[t][i / 2 % 2], sum[t][i], total[t][i]);
      } else {
        sum[t][i] *= scale[t][i / 2 % 2];
      }
    }
  }

  __device__ __forceinline__ void release(int slot) const {
    __syncwarp();
    if (lane == 0) device::arrive(block.is_free(slot));
  }

  // Steps of strip t; waits for the strip's former ones.
  __device__ __forceinline__ void multiply(Operands& a, const device::SlabWords& words, int t, int b,
                                           std::uint64_t x) {
    constexpr std::uint64_t kStep = 2 * kX * 16 / 16;  // of an operand's address
    const bool begins = kGroups && b % std::max(1, Format::kGroup) == 0;
    device::wgmma_wait<kStrips<kX> - 1>();
    keep_operands(a);
    if (begins) {
      if (b > 0) apply_scale(t);
      reader.give(bias[t], scale[t], t);
    }
#pragma unroll
    for (int i = 0; i < kPairs; ++i) Format::decode(a[i], words, b + i, bias[t], column);
    keep_operands(a);
    device::wgmma_fence();
#pragma unroll
    for (int i = 0; i < 2 * kPairs; ++i)
      device::wgmma(sum[t], a[i / 2][i % 2], x + (2 * b + i) * kStep, begins && i == 0 ? 0 : 1);
    device::wgmma_commit();
  }
  static __device__ __forceinline__ void keep_operands(Operands& a) {
#pragma unroll
    for (int i = 0; i < 2 * kPairs; ++i) device::keep(a[i / 2][i % 2]);
  }

  __device__ __forceinline__ void multiply_tile() {
    Operands a[kStrips<kX>];
    device::SlabWords words[kStrips<kX>];
    clear();
    int before = -1;  // slot of the slab before
    take(words, 0);
    constexpr int kAtOnce = kStrips<kX> == 1 ? 2 : 1;  // slabs of a turn of the loop: as registers allow
#pragma unroll 1
    for (int slab = block.is_busy(warp) ? block.begin : block.end; slab < block.end; slab += kAtOnce) {
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i)
        multiply_slab(a, words, before, kAtOnce == 2 ? i : slab % 2, slab + i);
    }
    device::wgmma_wait<0>();
    if (!kGroups && before >= 0) release(before);
#pragma unroll
    for (int t = 0; t < kStrips<kX>; ++t) {
      keep_operands(a[t]);
      if constexpr (!kGroups) {
        scale[t][0] = __uint_as_float(reader.next[t][0]);
        scale[t][1] = __uint_as_float(reader.next[t][1]);
        apply_scale(t);
      }
    }
    poison();
  }
  // half: of its box. The next slab's words come while its products are under way.
  __device__ __forceinline__ void multiply_slab(Operands (&a)[kStrips<kX>],
                                                device::SlabWords (&words)[kStrips<kX>], int& before,
                                                int half, int slab) {
    device::await(block.has_x(x_place.slot), x_place.parity);
    const std::uint64_t x = device::wgmma_operand(block.x_slot(x_place.slot), 16 * kX);
#pragma unroll
    for (int b = 0; b < Format::kBatches; b += kPairs) {
      if (kGroups && b % std::max(1, Format::kGroup) == 0)
        reader.advance((half * Format::kBatches + b) / std::max(1, Format::kGroup));
#pragma unroll
      for (int t = 0; t < kStrips<kX>; ++t) multiply(a[t], words[t], t, b, x);
      // The last strip's first wait was for all products of the slab before.
      if (!kGroups && b == 0 && before >= 0) release(before);
    }
    before = x_place.slot;
    x_place.advance(Block::kAt.x_slots);
    if (half == 0 || slab + 1 < block.end) take(words, 1 - half);
    if constexpr (kGroups) {
      if constexpr (kStrips<kX> == 2) {
        device::wgmma_wait<1>();
        apply_scale(0);
      }
      device::wgmma_wait<0>();
      apply_scale(kStrips<kX> - 1);
      release(before);
    }
  }
  __device__ __forceinline__ void take(device::SlabWords (&words)[kStrips<kX>], int half) {
    codes.take(words, half);
    note_nan(words);
  }

  __device__ __forceinline__ void note_nan(const device::SlabWords (&words)[kStrips<kX>]) {
    if constexpr (Format::kHasNan) {
#pragma unroll
      for (int i = 0; i < 8 * kStrips<kX>; ++i) nan[i / 8][i % 2] |= nan_e4m3(words[i / 8][i / 2 % 4][i % 2]);
    }
  }

  // A NaN among a row's codes makes all of its sums NaN.
  __device__ __forceinline__ void poison() {
    if constexpr (Format::kHasNan) {
#pragma unroll
      for (int th = 0; th < 2 * kStrips<kX>; ++th) {
        const int t = th / 2, h = th % 2;
        std::uint32_t any = nan[t][h] & kNanBits;
        any |= __shfl_xor_sync(0xFFFFFFFFu, any, 1);
        any |= __shfl_xor_sync(0xFFFFFFFFu, any, 2);
        if (any == 0) continue;
#pragma unroll
        for (int i = 0; i < kX / 2; ++i) {
          if (i / 2 % 2 == h)
            (kGroups ? total[t][kGroups ? i : 0] : sum[t][i]) = __uint_as_float(0x7FC00000u);
        }
      }
    }
  }

  __device__ __forceinline__ void store_sums() const {
    const int first = lane % 4 * 2 * kSumsPitch + kWarpRows<kX> * warp + lane / 4;
    const std::uint32_t to = block.memory + static_cast<std::uint32_t>(Block::kAt.sums + 4 * first);
#pragma unroll
    for (int t = 0; t < kStrips<kX>; ++t) {
#pragma unroll
      for (int i = 0; i < kX / 2; ++i) {
        const int at = 4 * ((i / 4 * 8 + i % 2) * kSumsPitch + 16 * t + i / 2 % 2 * 8);
        const float value = kGroups ? total[t][kGroups ? i : 0] : sum[t][i];
        asm volatile("st.shared.f32 [%0], %1;" ::"r"(to + static_cast<std::uint32_t>(at)), "f"(value)
                     : "memory");
      }
    }
  }

  template <bool kRelease>
  __device__ __forceinline__ void tell_cluster(std::uint32_t barrier) const {
    meet_workers<kX>();
    if (threadIdx.x >= static_cast<unsigned>(block.p.cluster)) return;
    device::arrive_in_cluster<kRelease>(device::shared_of(barrier, threadIdx.x));
  }

  // Block r has rows r, r + C, ... of x; a thread four rows of w.
  __device__ __forceinline__ void write(int tile) const {
    constexpr int kAcross = kWgmmaRows / 4, kDown = kWorkers<kX> / kAcross,
                  kAtOnce = kX / kDown < 8 ? kX / kDown : 8;
    const WgmmaParams& p = block.p;
    const int row = static_cast<int>(threadIdx.x) % kAcross * 4, n = tile * p.tile_rows + row;
    if (row >= p.tile_rows || n >= p.rows) return;
    const std::uint32_t from = block.memory + static_cast<std::uint32_t>(Block::kAt.sums + 4 * row);
    const int pitch = kDown * p.cluster;
    for (int m = block.rank + static_cast<int>(threadIdx.x) / kAcross * p.cluster; m < p.m;
         m += kAtOnce * pitch) {
      float4 sums[kAtOnce] = {};
      for (int r = 0; r < p.cluster; ++r) {
        const std::uint32_t there = p.cluster == 1 ? from : device::shared_of(from, r);
        float4 part[kAtOnce];
#pragma unroll
        for (int j = 0; j < kAtOnce; ++j)
          part[j] =
              read_there(there + static_cast<std::uint32_t>(4 * kSumsPitch * min(m + j * pitch, kX - 1)));
#pragma unroll
        for (int j = 0; j < kAtOnce; ++j) {
          sums[j].x += part[j].x;
          sums[j].y += part[j].y;
          sums[j].z += part[j].z;
          sums[j].w += part[j].w;
        }
      }
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        if (m + j * pitch < p.m) store(p.y + (m + j * pitch) * p.y_stride + n, sums[j], p.rows - n);
      }
    }
  }
  static __device__ __forceinline__ float4 read_there(std::uint32_t address) {
    float4 v;
    asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
                 : "r"(address)
                 : "memory");
    return v;
  }
  static __device__ __forceinline__ void store(bf16* to, const float4& v, int count) {
    const device::Vec<bf16, 4> four{{device::round_to<bf16>(v.x), device::round_to<bf16>(v.y),
                                     device::round_to<bf16>(v.z), device::round_to<bf16>(v.w)}};
    if (count >= 4 && reinterpret_cast<std::uintptr_t>(to) % 8 == 0) return device::store_vec(to, four);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i < count) to[i] = four.at[i];
    }
  }

  __device__ __forceinline__ void run() {
    std::uint32_t turn = 0;
    for (int tile = block.first_tile; tile < block.p.tiles; tile += block.step, turn ^= 1) {
      multiply_tile();
      enter(tile + block.step);
      if (block.p.cluster == 1) {
        meet_workers<kX>();
        store_sums();
        meet_workers<kX>();
        write(tile);
      } else {
        if (tile == block.first_tile) device::cluster_wait();
        device::await_cluster(block.took_sums(), turn ^ 1);
        store_sums();
        tell_cluster<true>(block.has_sums());
        device::await_cluster(block.has_sums(), turn);
        write(tile);
        tell_cluster<false>(block.took_sums());
      }
    }
    if (block.p.cluster > 1) device::await_cluster(block.took_sums(), turn ^ 1);
  }
};

template <class Format, int kX>
__global__ void __launch_bounds__(kWorkers<kX> + kFeeders, 1)
    quant_wgmma_kernel(const __grid_constant__ WgmmaParams p) {
  extern __shared__ __align__(1024) char memory[];
  device::let_next_begin();
  if (threadIdx.x == 0) device::prefetch_map(&p.map);
  const WgmmaBlock<Format, kX> block(p, static_cast<std::uint32_t>(__cvta_generic_to_shared(memory)));
  if (threadIdx.x >= kWorkers<kX>) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kFeederRegisters<kX>));
    block.prepare();
    device::wait_for_previous();
    WgmmaFeeder<Format, kX>(block, static_cast<int>(threadIdx.x) - kWorkers<kX>).run();
    if (p.cluster > 1) device::cluster_wait();
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kWorkerRegisters<kX>));
    WgmmaWorker<Format, kX> worker(block, static_cast<int>(threadIdx.x));  // brings codes and scales
    block.prepare();
    device::wait_for_previous();
    worker.run();
  }
}

template <class Format, int kX>
void launch_wgmma(cudaStream_t stream, WgmmaParams p, const std::uint8_t* codes, std::int64_t row_bytes) {
  const auto kernel = quant_wgmma_kernel<Format, kX>;
  constexpr int kShared = WgmmaBlock<Format, kX>::kAt.bytes;
  static_assert(kBoxBytes == device::kByteBox);
  p.map = device::byte_rows_map(codes, p.rows, row_bytes, kWarpRows<kX>);
  const int boxes = (p.slabs + 1) / 2;
  p.cluster = wgmma_cluster(p.rows, boxes);
  p.tile_rows = static_cast<int>(wgmma_tile_rows(p.rows, p.cluster, kWarpRows<kX>));
  p.tiles = (p.rows + p.tile_rows - 1) / p.tile_rows;
  p.clusters = std::min(p.tiles, clusters_at_once(p.cluster));
  for (int i = 0; i < p.cluster; ++i)
    p.first_slab[i] = 2 * static_cast<int>(std::int64_t{i} * boxes / p.cluster);
  p.first_slab[p.cluster] = p.slabs;
  static const cudaError_t kAllowed = device::allow_shared_memory(kernel, kShared);
  check_cuda(kAllowed);
  device::launch_clusters_waiting(stream, p.early, static_cast<unsigned>(p.cluster), kernel,
                                  dim3(static_cast<unsigned>(p.clusters * p.cluster)),
                                  kWorkers<kX> + kFeeders, kShared, p);
}

template <class Format>
void launch_quant_wgmma(cudaStream_t stream, const WgmmaParams& params, const std::uint8_t* codes,
                        std::int64_t row_bytes) {
  if (params.m <= 16) return launch_wgmma<Format, 16>(stream, params, codes, row_bytes);
  if (params.m <= 32) return launch_wgmma<Format, 32>(stream, params, codes, row_bytes);
  launch_wgmma<Format, 64>(stream, params, codes, row_bytes);
}

}  // namespace ridge::kernels::cuda
