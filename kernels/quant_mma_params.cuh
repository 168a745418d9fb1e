// Few rows of x in bf16 times codes, on tensor cores: what the kernels are told.
//
// Shapes: x [M, K], w [N, K], y [M, N]; U times kTogether units of columns.
#pragma once

#include <cuda_runtime.h>

#include <type_traits>

#include "kernels/device/dequant.cuh"
#include "kernels/device/launch.cuh"
#include "kernels/formats/format.h"

namespace ridge::kernels::cuda {

inline constexpr int kMmaThreads = 32 * kQuantWarps;
/// Of a tile's sums: with two, a tile is added up while the next one is multiplied.
template <int kNT>
inline constexpr int kSumBuffers = kNT <= 2 ? 2 : 1;
inline constexpr int kSumPitch = 20;  // floats from column to column of a tile's sums: no two in a bank

/// What a kernel needs of the format's scales. The scale of (row, unit) is number
/// (row >> row_shift) * across + (unit >> unit_shift).
struct MmaScales {
  const void* scales;
  const std::uint8_t* zeros;
  const std::uint8_t* scale_codes;
  const float* nested;
  const float* map;
  const float* offset;
  std::int64_t first_block, row_blocks;  // see QuantView
  std::int64_t across;
  std::int64_t tile_step;  // from a cluster's rows to its next ones
  int row_shift, unit_shift;
};

struct MmaParams {
  const std::uint8_t* codes;
  std::int64_t row_bytes, tile_step;  // from a cluster's rows to its next ones
  int rows, columns, units;           // N, K, U
  MmaScales scale;
  std::uint16_t values[16];  // nf4's or fp4's, in bf16
  const bf16* x;
  std::int64_t x_stride;
  int m;  // M
  bf16* y;
  std::int64_t y_stride;
  int cluster;  // C
  int tiles;    // groups of C tiles
};

/// Bytes of shared memory, and where its parts begin; kNT: M / 8, rounded up to what is instantiated.
struct MmaShared {
  int x, sums, partials, map, bytes;

  template <class Format, int kNT>
  static MmaShared of(int m, int units, int cluster) {
    constexpr int kPartials = kSumBuffers<kNT> * kParts * 8 * kNT * kSumPitch * 4,
                  kMap = Format::kNested ? 256 * 4 : 0;
    constexpr bool kBelow = Format::kTable && kMap + kPartials <= device::kBeforePairTable;
    const int most = static_cast<int>(device::ceil_div(units, cluster)) * Format::kTogether;
    MmaShared s{};
    s.x = Format::kTable ? 2 * device::kPairTableBytes : 0;
    s.sums = s.x + m * x_row_bytes(most * Format::Layout::kColumns);
    const int end = s.sums + (Format::kBiased ? most * 8 * kNT * 4 : 0);
    s.map = 0;
    s.partials = kBelow ? kMap : end;
    s.bytes = kBelow ? end : end + kPartials;
    return s;
  }
};

/// Calls f(std::integral_constant<int, W>()): a kernel is compiled for 8 W rows of x.
template <class F>
void visit_mma_width(int m, const F& f) {
  if (m <= 8) return f(std::integral_constant<int, 1>());
  if (m <= 16) return f(std::integral_constant<int, 2>());
  if (m <= 32) return f(std::integral_constant<int, 4>());
  f(std::integral_constant<int, 8>());
}

template <class Format>
int mma_shared_bytes(int m, int units, int cluster) {
  int bytes = 0;
  visit_mma_width(
      m, [&](auto width) { bytes = MmaShared::of<Format, decltype(width)::value>(m, units, cluster).bytes; });
  return bytes;
}

/// Queues the product. Instantiated for the formats of dequant.cuh.
template <class Format>
void launch_quant_mma(cudaStream_t stream, const MmaParams& params);

}  // namespace ridge::kernels::cuda
