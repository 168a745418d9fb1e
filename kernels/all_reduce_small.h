// The sum over ranks that see each other's memory of a few values, in one kernel: each rank reads all ranks'
// values and adds them itself (one-shot, as of TensorRT-LLM's and vLLM's custom all-reduce). For messages
// whose time is latency.
#pragma once

#include <chrono>
#include <cstddef>
#include <type_traits>

#include "core/base/dtype.h"
#include "core/base/stream.h"
#include "core/base/view.h"
#include "kernels/all_reduce_small_layout.h"

namespace ridge::kernels {

/// Ranks and their regions, as addresses of this process, on multiples of 16 bytes. A region begins as zeros,
/// before any rank's first sum.
struct SmallSumRanks {
  std::byte* region[small_sum::kMostRanks] = {};  // of layout.bytes() each
  int rank = 0, size = 1;
  small_sum::Layout layout;
};

/// What becomes of the sum: stored, or added to what is there, as T and rounded again.
enum class SmallSumEnd { store, add };

/// y = the sum of all ranks' x in the order of ranks: in f32, rounded once, the same bits on all of them.
/// Dense [N]; y may be x where it is stored. Every rank makes the same sums in the same order, on one stream
/// each. A sum can be recorded and run again: it counts its uses in the region. A rank that does not come
/// within `limit` is an Error, on a GPU when the stream is next waited for, which can run nothing any more.
/// T: float, bf16.
template <class T>
void all_reduce_small(Stream& stream, const SmallSumRanks& ranks, View<const T> x_N,
                      std::type_identity_t<View<T>> y_N, SmallSumEnd end = SmallSumEnd::store,
                      std::chrono::nanoseconds limit = std::chrono::minutes(10));

/// What `launch` runs on a GPU; arguments are checked already (all_reduce_small.cu).
namespace cuda {
template <class T>
void all_reduce_small(Stream& stream, const SmallSumRanks& ranks, View<const T> x_N, View<T> y_N,
                      SmallSumEnd end, std::chrono::nanoseconds limit);
}  // namespace cuda

}  // namespace ridge::kernels
