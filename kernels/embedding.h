// Table lookup by id and its gradient. V ids, N tokens, C channels.
#pragma once

#include <cstdint>

#include "core/base/dtype.h"
#include "core/base/stream.h"
#include "core/base/view.h"

namespace ridge::kernels {

/// Of a table that is cut among ranks: its rows here are those of ids first .. first + rows - 1 of
/// `vocabulary`. By default all rows are here.
struct TablePiece {
  std::int64_t first = 0, vocabulary = -1;

  std::int64_t ids(std::int64_t rows) const { return vocabulary < 0 ? rows : vocabulary; }
};

/// y[n] = table[ids[n]], zeros where the row is elsewhere. An id outside [0, V) is a UserError that names
/// position, id and V, the whole vocabulary.
template <class T>
void embedding(Stream& stream, View<const T> table_VC, View<const std::int32_t> ids_N, View<T> y_NC,
               TablePiece piece = {});

/// Adds dy[n] to dtable[ids[n]] where that row is here, in the order of n whatever the threads. Same error.
template <class T>
void embedding_backward(Stream& stream, View<const T> dy_NC, View<const std::int32_t> ids_N,
                        View<acc_t<T>> dtable_VC, TablePiece piece = {});

/// What `launch` runs on a GPU (embedding.cu). A bad id is reported through `ridge::cuda::fault_slot`: its
/// row of y is zeros, its row of dy is left out.
namespace cuda {
/// For the backward pass over N tokens: what sorting them by id takes.
constexpr std::int64_t embedding_scratch_bytes(std::int64_t tokens) {
  return 5 * 4 * tokens + (std::int64_t{1} << 20);
}

template <class T>
void embedding(Stream& stream, View<const T> table_VC, View<const std::int32_t> ids_N, View<T> y_NC,
               TablePiece piece);
template <class T>
void embedding_backward(Stream& stream, View<const T> dy_NC, View<const std::int32_t> ids_N,
                        View<acc_t<T>> dtable_VC, TablePiece piece, void* scratch,
                        std::int64_t scratch_bytes);
}  // namespace cuda

}  // namespace ridge::kernels
