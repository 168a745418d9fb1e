// Where the products on tensor cores have what: constexpr, so that a test checks on the CPU that every weight
// meets its x once.
//
// A warp has 16 rows of w, lane l rows l / 4 and l / 4 + 8. A unit of columns is what the four lanes of a row
// read at once, each its own run of whole words; a run is cut into eights, and an eight is two steps of
// mma.m16n8k16: lane q of four has columns 2q, 2q + 1, 2q + 8, 2q + 9 of a step, and these four are its next
// weights. x lies in shared memory by units, of a unit eight by eight, of an eight the four lanes' side by
// side.
#pragma once

#include <cstdint>

namespace ridge::kernels {

inline constexpr int kTileRows = 16;    // of w, a warp
inline constexpr int kQuantWarps = 16;  // a block
inline constexpr int kParts = 16;       // of a row's columns: summed apart, then in one order

/// `bits` of a code; 32-bit words that a lane reads of a row at once.
template <int kBitsOfCode, int kWordsOfRun>
struct UnitLayout {
  static constexpr int kBits = kBitsOfCode;
  static constexpr int kWords = kWordsOfRun;
  static constexpr int kRun = kWords * 32 / kBits;  // columns of a lane
  static constexpr int kColumns = 4 * kRun;         // of a unit
  static constexpr int kEights = kRun / 8;          // of a lane
  static constexpr int kBytes = 16 * kWords;        // of a unit's codes in a row

  /// The first of the eight columns e of lane q.
  static constexpr int column(int q, int e) { return q * kRun + 8 * e; }
  /// Where the eight columns from 8 i on lie in a unit of x, in eights.
  static constexpr int place(int i) { return i % kEights * 4 + i / kEights; }
  /// Where lane q looks for its eight e.
  static constexpr int place_of(int q, int e) { return e * 4 + q; }

  /// Of x as bytes: where lane q looks for its eight e in a unit, and which unit, lane and eight the columns
  /// from 8 i of a row are.
  static constexpr int byte_place_of(int q, int e) {
    return e / 2 * 64 + q * (kRun < 16 ? kRun : 16) + e % 2 * 8;
  }
  static constexpr int byte_place(int i) {
    const int eight = i % (kColumns / 8);
    return i / (kColumns / 8) * kColumns + byte_place_of(eight / kEights, eight % kEights);
  }
};

/// Which 16 bytes of a row of 128 in shared memory hold its chunk `chunk`, where a lane reads kWords at once:
/// rows that are read together lie in different banks.
template <int kWords>
constexpr int chunk_place(int row, int chunk) {
  constexpr int kRows = 8 / kWords;  // 1: 8 rows of 16 bytes, 2: 4 of 32, 4: 2 of 64
  return chunk ^ (row % kRows * (8 / kRows));
}

/// Decoding through a table of 256 rows of 128 bytes: each has the first half of a line, and of the other
/// halves, then of more lines, a stage of a ring takes kTileRows.
inline constexpr int kLineBytes = 256;
inline constexpr int kTableLines = 256 * kLineBytes;
inline constexpr int kStageLines = kTileRows * kLineBytes;
inline constexpr int kStagesInTable = kTableLines / kStageLines;
/// The number of the first stage that lies in second halves of the lines after the table, of `stages`: as
/// many lie in the first halves.
constexpr int first_in_second(int stages) { return (kStagesInTable + stages) / 2; }
/// Where stage number i begins.
constexpr int stage_place(int i, int stages) {
  const int second = first_in_second(stages);
  if (i < kStagesInTable) return i * kStageLines + kLineBytes / 2;
  if (i < second) return i * kStageLines;
  return (i - second + kStagesInTable) * kStageLines + kLineBytes / 2;
}
/// Of the table and an even number of stages, more than it has room for.
constexpr int lines_bytes(int stages) { return first_in_second(stages) * kStageLines; }

/// The first unit of part `p`, for all p up to kParts.
constexpr int first_unit(int p, int units) {
  return static_cast<int>(static_cast<std::int64_t>(p) * units / kParts);
}

/// Bytes from row to row of x in shared memory: 64 more than whole lines, so that two rows' pieces of 64
/// bytes use all banks.
constexpr int x_row_bytes(int columns) { return (2 * columns + 127) / 128 * 128 + 64; }

/// The sum of kParts numbers, `step` apart: quarters, then their sums in a tree.
constexpr float add_parts(const float* first, int step) {
  float quarter[4] = {};
  for (int i = 0; i < 4; ++i) {
    const float* of = first + 4 * i * step;
    quarter[i] = ((of[0] + of[step]) + of[2 * step]) + of[3 * step];
  }
  return (quarter[0] + quarter[1]) + (quarter[2] + quarter[3]);
}

/// How `cluster` blocks share the parts: each has kParts / cluster of them, for `cluster` tiles of rows.
struct WarpPlace {
  int part, tile;
};
constexpr WarpPlace warp_place(int warp, int rank, int cluster) {
  const int parts = kParts / cluster;
  return {rank * parts + warp % parts, warp / parts};
}

}  // namespace ridge::kernels
