// Where a rank's piece of a tensor lies in the logical tensor, the one that a single rank would hold.
#pragma once

#include <cstdint>
#include <vector>

#include "core/base/shape.h"

namespace ridge::parallel {

/// A box of a logical tensor, row-major.
struct Box {
  std::vector<std::int64_t> offset, extent;

  std::int64_t numel() const;
  bool operator==(const Box&) const = default;
};

/// How tensor parallelism cuts a parameter: rows `begin .. end - 1` of dimension `dim`, or all of it.
struct Placement {
  int dim = -1;  // -1: whole on every rank of tp
  std::int64_t begin = 0, end = 0;
  int copies = 1;        // ranks of tp that hold the same rows; consecutive ones
  int copy = 0;          // this rank's place among them: the first counts in norms and writes checkpoints
  bool partial = false;  // the copies' gradients are parts of a sum

  /// The whole parameter on each of `tp` ranks.
  static Placement whole(int tp, int rank, bool partial = false) { return {-1, 0, 0, tp, rank, partial}; }
  /// The shape of this rank's piece.
  Shape local_shape(const Shape& logical) const;
};

/// Row-major elements [flat_begin, flat_end) of this rank's piece, as boxes of the logical tensor, in the
/// order in which the piece stores them.
std::vector<Box> boxes(const Placement& placement, const Shape& logical, std::int64_t flat_begin,
                       std::int64_t flat_end);

}  // namespace ridge::parallel
