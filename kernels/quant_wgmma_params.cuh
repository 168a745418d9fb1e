// Some rows of x in bf16 times codes, by products of four warps: what the kernels are told.
//
// Shapes: x [M, K], w [N, K], y [M, N]. A slab is kSlabBytes of codes of each row, a batch 8 bytes a lane.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "core/base/dtype.h"
#include "kernels/device/dequant.cuh"

namespace ridge::kernels::cuda {

inline constexpr int kWgmmaRows = 256;                             // of w, that a block has room for
inline constexpr int kSlabBytes = 64, kBoxBytes = 2 * kSlabBytes;  // of a row: at a time, and brought at once
inline constexpr int kFeeders = 128;                               // threads that bring x
/// Strips of 16 rows of a warp: more warps where registers allow. kX: rows of x that a kernel is compiled
/// for.
template <int kX>
inline constexpr int kStrips = kX <= 32 ? 1 : 2;
template <int kX>
inline constexpr int kWarpRows = 16 * kStrips<kX>;
template <int kX>
inline constexpr int kWorkers = kWgmmaRows / kWarpRows<kX> * 32;  // threads that multiply
/// Of a thread: 96 x 640 in all, or 168 x 384.
template <int kX>
inline constexpr int kWorkerRegisters = kStrips<kX> == 1 ? 104 : 208;
template <int kX>
inline constexpr int kFeederRegisters = kStrips<kX> == 1 ? 64 : 88;
inline constexpr int kSumsPitch = kWgmmaRows + 4;  // floats from row to row of y: no two of a warp in a bank
inline constexpr int kWgmmaShared = 227 * 1024;

/// Where scales are. That of (row, unit) is number (row >> row_shift) * across + (unit >> unit_shift).
struct WgmmaScales {
  const void* scales;
  const std::uint8_t* zeros;
  const std::uint8_t* scale_codes;  // nested: in place of scales
  const float* nested;
  const float* map;
  const float* offset;
  std::int64_t first_block, row_blocks;  // see QuantView
  std::int64_t across;
  int row_shift, unit_shift, units;  // units: of a row
};

struct WgmmaParams {
  CUtensorMap map;           // of the codes, boxes of kWarpRows
  int rows, columns, slabs;  // N, K, of a row: whole boxes
  WgmmaScales scale;
  std::uint16_t values[16];  // nf4's or fp4's, in bf16
  const bf16* x;
  std::int64_t x_stride;
  int m;  // M
  bf16* y;
  std::int64_t y_stride;
  int cluster, clusters;  // blocks that share the slabs of their rows; how many times these
  int first_slab[9];      // of each, and the end
  int tile_rows, tiles;   // whole strips of warps; the warps beyond have nothing to do
  bool early;
};

/// How many clusters of so many blocks an H200 holds at once.
constexpr int clusters_at_once(int size) {
  return size <= 2 ? 132 / size : size <= 4 ? 30 : size <= 5 ? 22 : 15;
}

/// Tiles that keep clusters of so many blocks busy, one after the other.
constexpr std::int64_t wgmma_turns(std::int64_t rows, int cluster) {
  const std::int64_t at_once = std::int64_t{kWgmmaRows} * clusters_at_once(cluster);
  return (rows + at_once - 1) / at_once;
}
/// Rows of a tile such that all clusters have as many, up to kWgmmaRows: whole `step`.
constexpr std::int64_t wgmma_tile_rows(std::int64_t rows, int cluster, int step) {
  const std::int64_t tiles = wgmma_turns(rows, cluster) * clusters_at_once(cluster);
  return (rows + tiles * step - 1) / (tiles * step) * step;
}

/// Blocks that share a row's slabs, from N and K alone. boxes: of a row.
constexpr int wgmma_cluster(std::int64_t rows, int boxes) {
  constexpr std::int64_t kX = 64, kOverhead = 640;  // as rows of boxes: what a box takes besides, what a tile
  int best = 1;
  std::int64_t least = -1;
  for (const int size : {1, 2, 4, 5, 8}) {
    if (size > boxes) break;
    const std::int64_t box = wgmma_tile_rows(rows, size, 16) + kX;
    const std::int64_t cost = wgmma_turns(rows, size) * ((boxes + size - 1) / size * box + kOverhead);
    if (least >= 0 && cost >= least) continue;
    least = cost;
    best = size;
  }
  return best;
}

/// A block's shared memory: bytes from its beginning.
struct WgmmaShared {
  int barriers, map, x, sums, codes, bytes;
  int x_slots, code_slots;

  static constexpr int kBarrierBytes = 128 + 128 * 16;

  /// x_bytes: of a slab of x.
  static constexpr WgmmaShared of(int x_rows, int x_bytes, bool table) {
    WgmmaShared s{};
    s.barriers = 0;
    s.map = kBarrierBytes;
    const int begin = table ? kBarrierBytes + 1024 : kBarrierBytes;  // the map of nested scales lies between
    const int sum_bytes = (x_rows * kSumsPitch * 4 + 1023) / 1024 * 1024;
    s.x_slots = x_bytes > 8192 ? (table ? 2 : 3) : 3;
    const bool below = table && begin + s.x_slots * x_bytes <= device::kBeforePairTable;
    const int after = table ? 2 * device::kPairTableBytes : begin;
    s.x = below ? begin : after;
    s.sums = below ? after : after + s.x_slots * x_bytes;
    s.codes = (s.sums + sum_bytes + 1023) / 1024 * 1024;
    const int slot = kWgmmaRows * kBoxBytes;
    const int most = x_rows <= 32 ? 4 : 2;  // with 3, products of 64 rows took longer
    s.code_slots = std::min((kWgmmaShared - s.codes) / slot, most);
    s.bytes = s.codes + s.code_slots * slot;
    return s;
  }
};

/// Queues the product for M up to 64. Instantiated for the formats of quant_wgmma_codes.cuh.
template <class Format>
void launch_quant_wgmma(cudaStream_t stream, const WgmmaParams& params, const std::uint8_t* codes,
                        std::int64_t row_bytes);

}  // namespace ridge::kernels::cuda
