// Table lookup by id and its gradient. V ids, N tokens, C channels.
#pragma once

#include <cstdint>

#include "core/base/dtype.h"
#include "core/base/stream.h"
#include "core/base/view.h"

namespace ridge::kernels {

/// y[n] = table[ids[n]]. An id outside [0, V) is a UserError that names position, id and V.
template <class T>
void embedding(Stream& stream, View<const T> table_VC, View<const std::int32_t> ids_N, View<T> y_NC);

/// Adds dy[n] to dtable[ids[n]], in the order of n whatever the threads. Same error.
template <class T>
void embedding_backward(Stream& stream, View<const T> dy_NC, View<const std::int32_t> ids_N,
                        View<acc_t<T>> dtable_VC);

/// What `launch` runs on a GPU (embedding.cu). A bad id is reported through `ridge::cuda::fault_slot`: its
/// row of y is zeros, its row of dy is left out.
namespace cuda {
/// For the backward pass over N tokens: what sorting them by id takes.
constexpr std::int64_t embedding_scratch_bytes(std::int64_t tokens) {
  return 5 * 4 * tokens + (std::int64_t{1} << 20);
}

template <class T>
void embedding(Stream& stream, View<const T> table_VC, View<const std::int32_t> ids_N, View<T> y_NC);
template <class T>
void embedding_backward(Stream& stream, View<const T> dy_NC, View<const std::int32_t> ids_N,
                        View<acc_t<T>> dtable_VC, void* scratch, std::int64_t scratch_bytes);
}  // namespace cuda

}  // namespace ridge::kernels
