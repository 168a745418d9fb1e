#include "kernels/embedding.h"

#include <algorithm>

#include "core/base/launch.h"
#include "core/base/memory.h"
#include "core/base/threads.h"
#include "kernels/element.h"

namespace ridge::kernels {
namespace {

void check_ids(View<const std::int32_t> ids_N, std::int64_t vocabulary) {
  for (std::int64_t n = 0; n < ids_N.dim(0); ++n) {
    const std::int64_t id = ids_N(n);
    require(
        id >= 0 && id < vocabulary,
        "embedding: id {} at position {} is outside the vocabulary of {} ids: check that tokenizer and model "
        "belong together",
        id, n, vocabulary);
  }
}

void check_shapes(const Shape& table, const Shape& ids, const Shape& rows) {
  check(table.ndim() == 2 && ids.ndim() == 1 && rows == Shape{ids[0], table[1]},
        "embedding: table [ids, channels], one row an id");
}

/// Columns of one task: at most 16 tasks, each of whole cache lines. Sums do not depend on the split.
std::int64_t columns_per_task(std::int64_t channels) {
  const std::int64_t sixteenth = (channels + 15) / 16;
  return std::max<std::int64_t>(64, (sixteenth + 15) / 16 * 16);
}

bool is_here(std::int64_t row, std::int64_t rows) { return row >= 0 && row < rows; }

void check_piece(TablePiece piece, std::int64_t rows) {
  check(piece.first >= 0 && piece.first + rows <= piece.ids(rows),
        "embedding: the rows here are in the table");
}

template <class T>
void add_row(const T* dy, acc_t<T>* sum, std::int64_t n) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) sum[i] += load(dy[i]);
}

}  // namespace

template <class T>
void embedding(Stream& stream, View<const T> table_VC, View<const std::int32_t> ids_N, View<T> y_NC,
               TablePiece piece) {
  check_shapes(table_VC.shape, ids_N.shape, y_NC.shape);
  check(table_VC.rows_dense() && y_NC.rows_dense(), "embedding: dense rows");
  const std::int64_t rows = table_VC.dim(0), channels = table_VC.dim(1);
  check_piece(piece, rows);
  const auto look_up = [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t n = begin; n < end; ++n) {
      const std::int64_t row = ids_N(n) - piece.first;
      T* to = y_NC.data + n * y_NC.strides[0];
      if (is_here(row, rows)) {
        std::copy_n(table_VC.data + row * table_VC.strides[0], channels, to);
      } else {
        std::fill_n(to, channels, T());
      }
    }
  };
  launch(
      stream, "embedding", Work{0, 2 * y_NC.bytes() + ids_N.bytes()},
      [&] {
        check_ids(ids_N, piece.ids(rows));
        const std::int64_t grain = std::max<std::int64_t>(1, 16384 / std::max<std::int64_t>(1, channels));
        parallel_for(ids_N.dim(0), grain, look_up);
      },
      [&] { cuda::embedding<T>(stream, table_VC, ids_N, y_NC, piece); });
}

template <class T>
void embedding_backward(Stream& stream, View<const T> dy_NC, View<const std::int32_t> ids_N,
                        View<acc_t<T>> dtable_VC, TablePiece piece) {
  check_shapes(dtable_VC.shape, ids_N.shape, dy_NC.shape);
  check(dtable_VC.rows_dense() && dy_NC.rows_dense(), "embedding: dense rows");
  const double elements = static_cast<double>(dy_NC.numel());
  const Work work{elements, dy_NC.bytes() + ids_N.bytes() + 2 * elements * sizeof(acc_t<T>)};
  const bool on_cpu = planned_device(stream.device()) == Device::cpu;
  const PurposeScope purpose(Purpose::workspace);
  const Storage scratch(stream.device(), on_cpu ? 0 : cuda::embedding_scratch_bytes(ids_N.dim(0)));
  const std::int64_t rows = dtable_VC.dim(0);
  check_piece(piece, rows);
  const auto add_columns = [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t n = 0; n < ids_N.dim(0); ++n) {
      const std::int64_t row = ids_N(n) - piece.first;
      if (is_here(row, rows)) add_row(&dy_NC(n) + begin, &dtable_VC(row) + begin, end - begin);
    }
  };
  launch(
      stream, "embedding_backward", work,
      [&] {
        check_ids(ids_N, piece.ids(rows));
        parallel_for(dtable_VC.dim(1), columns_per_task(dtable_VC.dim(1)), add_columns);
      },
      [&] {
        cuda::embedding_backward<T>(stream, dy_NC, ids_N, dtable_VC, piece, scratch.data(), scratch.bytes());
      });
}

template void embedding<float>(Stream&, View<const float>, View<const std::int32_t>, View<float>, TablePiece);
template void embedding_backward<float>(Stream&, View<const float>, View<const std::int32_t>, View<float>,
                                        TablePiece);

template void embedding<double>(Stream&, View<const double>, View<const std::int32_t>, View<double>,
                                TablePiece);
template void embedding_backward<double>(Stream&, View<const double>, View<const std::int32_t>, View<double>,
                                         TablePiece);

template void embedding<bf16>(Stream&, View<const bf16>, View<const std::int32_t>, View<bf16>, TablePiece);
template void embedding_backward<bf16>(Stream&, View<const bf16>, View<const std::int32_t>, View<float>,
                                       TablePiece);

}  // namespace ridge::kernels
