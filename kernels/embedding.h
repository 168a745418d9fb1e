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

}  // namespace ridge::kernels
