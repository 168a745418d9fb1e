// Few rows of x times a matrix that is read once: what the kernels are told.
//
// Shapes: x [M, K], w [N, K], y [M, N]. Tiles of 16 rows of w; a row is `units` pieces of columns, and slabs
// of kSlabBytes.
#pragma once

#include <algorithm>

#include "kernels/decode_product.h"
#include "kernels/device/dequant.cuh"
#include "kernels/device/launch.cuh"

namespace ridge::kernels::cuda {

inline constexpr int kDecodeWarps = 8;  // that multiply; one more reads
inline constexpr int kDecodeThreads = 32 * (kDecodeWarps + 1);
inline constexpr int kSlabBytes = 1024;  // of a row
inline constexpr int kMostStages = 8;
inline constexpr int kMostNorm = 4 * 8 * kDecodeThreads;  // columns of a row that a block normalizes
inline constexpr int kHalfOfShared = 113 * 1024;          // bytes: two blocks fit a multiprocessor
inline constexpr int kMostShared = 227 * 1024;

/// The codes' scales. Those of a tile lie together: `across` to a row, or one row of them for all.
struct DecodeScales {
  const std::uint8_t* scales;  // bytes: f32, bf16 or codes
  const std::uint8_t* zeros;
  std::int64_t step;  // bytes from tile to tile
  int bytes;          // of a tile, of which `scale_bytes` are scales and the others zero points
  int scale_bytes;
  int tile_shift;  // tiles that share scales, as a power of two
  int across;      // scales from row to row, 0: all rows have the same
  int unit_shift;  // units that share a scale, as a power of two
  const float* nested;
  const float* map;
  const float* offset;
  std::int64_t first_block, row_blocks;  // see QuantView
};

struct DecodeParams {
  const std::uint8_t* codes;
  std::int64_t row_bytes;
  std::int64_t half_rows;  // swiglu: from a gate's row to its up's
  int outputs, columns, units, slabs, tiles;
  int used_bytes;  // of a row
  DecodeScales scale;
  std::uint16_t values[16];  // nf4's or fp4's, in bf16
  const bf16* x;
  std::int64_t x_stride;
  int m;
  const bf16* norm;  // null: x as it is
  float eps;
  const bf16* bias;  // null: none
  bf16* y;
  std::int64_t y_stride;
  ProductEnd end;
};

/// Where a block has what in its shared memory, bytes.
struct DecodeShared {
  int barriers, counters, map, norm, partials, scales, x, sums, ring, bytes;
  int stages, slots, slot_bytes;  // of the ring, of tiles' scales and partial sums

  template <class Format, int kHalves>
  static DecodeShared of(const DecodeParams& p) {
    DecodeShared s{};
    for (const int most : {kHalfOfShared, kMostShared}) {
      for (s.stages = kMostStages; s.stages >= 3; --s.stages) {
        s.place<Format, kHalves>(p);
        if (s.bytes <= most) return s;
      }
    }
    s.bytes = 0;  // x does not fit
    return s;
  }
  /// Bytes from row to row of a stage: rows' pieces that are read together lie in different banks.
  template <class Format>
  static constexpr int pitch() {
    return kSlabBytes + 16 * Format::Layout::kWords;
  }
  template <int kHalves>
  static constexpr int partial_floats(int m) {
    return kHalves * kDecodeWarps * kTileRows * m;
  }

 private:
  // Below the table of pairs as long as there is room, then after it.
  struct Places {
    int below = 0, above = 0, limit = 0;
    int take(int size) {
      size = (size + 127) / 128 * 128;
      int& from = below + size <= limit ? below : above;
      const int at = from;
      from += size;
      return at;
    }
  };
  template <class Format, int kHalves>
  void place(const DecodeParams& p) {
    Places places;
    if (Format::kTable) places.limit = device::kBeforePairTable, places.above = 2 * device::kPairTableBytes;
    slots = (stages + p.slabs * kHalves - 1) / (p.slabs * kHalves) + 1;
    slot_bytes = (p.scale.bytes + 15) / 16 * 16;
    barriers = places.take(2 * 8 * kMostStages);
    counters = places.take(4 * slots);
    map = places.take(Format::kNested ? 1024 : 0);
    norm = places.take(4 * (kDecodeWarps + 1));
    partials = places.take(4 * slots * partial_floats<kHalves>(p.m));
    scales = places.take(slots * kHalves * slot_bytes);
    x = places.take(p.m * x_row_bytes(p.columns));
    sums = places.take(Format::kBiased ? 4 * 8 * p.columns / Format::Layout::kColumns : 0);
    ring = places.take(stages * kTileRows * pitch<Format>());
    bytes = places.above == 0 ? places.below : places.above;
  }
};

/// Whether a block's memory holds x.
template <class Format>
bool fits_decode_product(const DecodeParams& p) {
  if (p.end == ProductEnd::swiglu) return DecodeShared::of<Format, 2>(p).bytes != 0;
  return DecodeShared::of<Format, 1>(p).bytes != 0;
}

/// Queues the product; false where a block's memory cannot hold x. Instantiated for the formats of
/// dequant.cuh.
template <class Format>
bool launch_decode_product(cudaStream_t stream, const DecodeParams& params);

}  // namespace ridge::kernels::cuda
