// Few rows of x times a matrix that is read once: what the kernels are told.
//
// Shapes: x [M, K], w [N, K], y [M, N]. Tiles are 16 rows of w, or 8 of a gate and 8 of an up projection; a
// row is units of columns, as decoders take them, and pieces of kPieceBytes, of one or more units.
#pragma once

#include <algorithm>

#include "kernels/decode_product.h"
#include "kernels/device/dequant.cuh"
#include "kernels/device/launch.cuh"

namespace ridge::kernels::cuda {

inline constexpr int kDecodeWarps = 8;
inline constexpr int kDecodeThreads = 32 * kDecodeWarps;
inline constexpr int kPieceBytes = 128;              // of a row, which a warp reads at once
inline constexpr int kBlocks = 2;                    // of a multiprocessor
inline constexpr unsigned kSlots = 2;                // of tiles' partial sums
inline constexpr int kLeastStages = 3;               // of a warp's ring
inline constexpr int kMostStages = 5;                // more keep x waiting behind them
inline constexpr int kMostPacks = 8;                 // of eight columns, that a thread stages at once
inline constexpr int kNormPacks = 4;                 // the same, of rows that are normalized
inline constexpr int kOfPacks = 8 * kDecodeThreads;  // columns of a pack of each thread
inline constexpr int kMostShared = 227 * 1024;       // bytes of a block; each costs 1 KiB more
constexpr int shared_of(int blocks) { return kMostShared / blocks - (blocks - 1) * 512; }

/// What a piece of a row holds.
template <class Format>
struct Piece {
  static constexpr int kUnits = kPieceBytes / Format::Layout::kBytes;
  static constexpr bool kTiles = !Format::kScaledAtEnd && Format::Layout::kBits == 8;
  static constexpr int kScales = Format::kScaledAtEnd ? 0 : (kTiles ? 1 : kUnits);
  static constexpr int kScaleBytes = kScales * Format::kScaleBytes;
  static constexpr int kZeroBytes = Format::kHasZeros ? std::max(4, kScales) : 0;  // 4 may serve two pieces
  static constexpr int kScaleRows = kTiles ? 2 : kTileRows;                        // tiles: of rows 0 and 8
  static constexpr int kEarly = Format::kDense ? 3 : 2;                            // asked for before x
  static constexpr bool kSpread = Format::kTable;  // units' sums apart, until a row's end
  static_assert(!kSpread || (kUnits == 4 && kScales == kUnits));
  static constexpr int kAllScaleBytes = kScaleRows * (kScaleBytes + kZeroBytes);
  // From row to row of codes in a stage, and from a stage, which ends with its scales, to the next; where
  // there is a table, rows are halves of lines (see stage_place), and scales lie elsewhere.
  static constexpr int kLine = Format::kTable ? kLineBytes : kPieceBytes;
  static constexpr int kStageBytes =
      Format::kTable ? kStageLines : (kTileRows * kPieceBytes + kAllScaleBytes + 63) / 64 * 64;
};

/// Where a block has what in its shared memory, bytes.
struct DecodeShared {
  int ring, stages, scales;  // stages: of a warp's ring; scales: where there is a table
  int barriers, norm, x, sums, map, partials, bytes;

  template <class Format>
  static DecodeShared of(int m, int columns) {
    DecodeShared s{};
    for (const int blocks : {kBlocks, 1}) {
      for (int stages = kMostStages; stages >= kLeastStages; --stages) {
        s.stages = stages;
        s.place<Format>(m, columns);
        if (s.bytes <= shared_of(blocks)) return s;
      }
    }
    s.bytes = 0;  // x does not fit
    return s;
  }

 private:
  int take(int size) {
    const int at = bytes;
    bytes += (size + 127) / 128 * 128;
    return at;
  }
  template <class Format>
  void place(int m, int columns) {
    using Of = Piece<Format>;
    const int all = stages * kDecodeWarps;
    bytes = Format::kTable ? lines_bytes(all) : 0;
    scales = Format::kTable ? take(all * Of::kAllScaleBytes) : 0;
    barriers = take(16 * static_cast<int>(kSlots));
    map = take(Format::kNested ? 2 * 1024 : 0);
    norm = take(4 * 2 * kDecodeWarps);
    partials = take(4 * static_cast<int>(kSlots) * kDecodeWarps * kTileRows * m);
    x = take(Format::kInteger ? m * kDigits * x_row_bytes(columns / 2) : m * x_row_bytes(columns));
    sums = take(Format::kBiased     ? 4 * 8 * columns / Format::Layout::kColumns
                : Format::kFactored ? 4 * 8 * kDecodeWarps
                                    : 0);
    ring = Format::kTable ? 0 : take(all * Of::kStageBytes);
  }
};

/// Lines of 64 bytes, by when a block needs them: each is a miss of a kernel's constants, 0.1 us. Of two, the
/// gate's and the up projection's, or the same twice.
struct DecodeParams {
  // To ask for codes; a kernel's parameters begin 48 bytes before the end of a line.
  const std::uint8_t* codes;
  const std::uint8_t* scales[2];  // bytes: f32, bf16 or codes
  std::int64_t second;            // from a tile's row to the one 8 further down, bytes
  std::int64_t four;              // rows, bytes
  int ring;                       // at.ring
  ProductEnd end;
  // The same.
  std::int64_t row_bytes;
  int pieces, tiles;
  int used_bytes;  // of a row
  int rows;        // of one of two in a tile: 16 or 8
  struct {
    std::int64_t codes, scales;  // bytes
    int tiles;
    int blocks;  // of scales
  } turn;        // from a block's tile to its next
  int across;    // scales of a row
  int m;
  // For x and results.
  const bf16* x;
  const bf16* norm;  // null: x as it is
  bf16* y;
  const bf16* bias[2];  // null: none
  std::int64_t x_stride, y_stride;
  float eps, of_column;  // of_column: a column's part of a mean
  // For some formats.
  DecodeShared at;
  int columns, units;
  int row_shift;              // rows of a scale's tile, their logarithm
  int row_blocks;             // see QuantView
  std::int64_t first_row[2];  // of a scale's tiles
  const std::uint8_t* zeros[2];
  const float* nested[2];
  const float* map[2];
  const float* offset[2];
  std::int64_t first_block[2];  // see QuantView
  std::uint16_t values[16];     // nf4's or fp4's, in bf16
  // The host's.
  const std::uint8_t* codes_of[2];
  int outputs;
  int unit_shift;  // a scale is of so many units, its logarithm
  bool early;

  __host__ __device__ bool gated() const { return end == ProductEnd::swiglu; }
  __host__ __device__ int log_rows() const { return gated() ? 3 : 4; }
};

inline constexpr int kMostLong = 2;  // rows with a factor, of more columns than threads hold at once
template <class Format>
bool long_rows(const DecodeParams& p) {
  return Format::kFactored && p.columns > kMostPacks * kOfPacks;
}

/// Whether a kernel takes x, and a block's memory holds it.
template <class Format>
bool fits_decode_product(const DecodeParams& p) {
  return (!long_rows<Format>(p) || p.m <= kMostLong) && DecodeShared::of<Format>(p.m, p.columns).bytes != 0;
}

/// Queues the product; false where a block's memory cannot hold x. Instantiated for the formats of
/// dequant.cuh.
template <class Format>
bool launch_decode_product(cudaStream_t stream, const DecodeParams& params);

}  // namespace ridge::kernels::cuda
