// Columns that ranks see of each other's memory, side by side, in one kernel: as all_reduce_small.h, with
// which it shares regions. For the logits of a decoding step. R rows, V columns.
#pragma once

#include <chrono>
#include <type_traits>

#include "core/base/dtype.h"
#include "core/base/stream.h"
#include "core/base/view.h"
#include "kernels/all_reduce_small.h"

namespace ridge::kernels {

/// Columns of y that are rank r's: from r * each on, the last ones fewer, or none.
struct RankColumns {
  std::int64_t each = 0, all = 0;

  static constexpr RankColumns of(std::int64_t columns, int ranks) {
    return {(columns + ranks - 1) / ranks, columns};
  }
};

/// y [R, V], dense, in which each rank has its columns, has all of them. Recorded, run again and ended as
/// all_reduce_small; regions have room for R * ceil(V / ranks) elements. T: float, bf16.
template <class T>
void all_gather_small(Stream& stream, const SmallSumRanks& ranks, View<T> y_RV,
                      std::chrono::nanoseconds limit = std::chrono::minutes(10));

/// What `launch` runs on a GPU; arguments are checked already (all_gather_small.cu).
namespace cuda {
template <class T>
void all_gather_small(Stream& stream, const SmallSumRanks& ranks, View<T> y_RV,
                      std::chrono::nanoseconds limit);
}  // namespace cuda

}  // namespace ridge::kernels
