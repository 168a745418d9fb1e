#include "kernels/vocab_cross_entropy.h"

#include "core/base/launch.h"
#include "core/base/threads.h"
#include "kernels/cross_entropy_row.h"

namespace ridge::kernels {
namespace {

/// The target's place among the ids here, outside of them where it is another rank's.
std::int32_t place_of(std::int32_t target, VocabPiece piece) {
  if (target == kIgnoreIndex || target < piece.first) return target == kIgnoreIndex ? target : -1;
  return static_cast<std::int32_t>(target - piece.first);
}

template <class A>
struct WholeRow {
  A lse, at_target;
};

/// In the order of ranks: the same bits on each.
template <class A>
WholeRow<A> whole_row(View<const A> statistics_P3R, std::int64_t r) {
  SumOfRow<A> whole;
  A at_target = 0;
  const std::int64_t ranks = statistics_P3R.dim(0);
  for (std::int64_t p = 0; p < ranks; ++p) whole.top = std::max(whole.top, statistics_P3R(p, 0, r));
  const A shift = whole.top == -std::numeric_limits<A>::infinity() ? A(0) : whole.top;
  for (std::int64_t p = 0; p < ranks; ++p) {
    whole.sum += statistics_P3R(p, 1, r) * std::exp(statistics_P3R(p, 0, r) - shift);
    at_target += statistics_P3R(p, 2, r);
  }
  return {whole.top + std::log(whole.sum), at_target};
}

void check_rows(std::int64_t rows, const Shape& targets, const Shape& statistics) {
  check(targets == Shape{rows} && statistics[-1] == rows && statistics[-2] == 3,
        "vocab_cross_entropy: one target and three statistics a row");
}

template <class T>
void check_piece(const View<T>& logits_Rv, VocabPiece piece) {
  check(logits_Rv.ndim() == 2 && logits_Rv.rows_dense(),
        "vocab_cross_entropy: logits [rows, ids], dense rows");
  check(piece.first >= 0 && piece.first + logits_Rv.dim(1) <= piece.vocabulary,
        "vocab_cross_entropy: the ids here are in the vocabulary");
}

}  // namespace

template <class T>
void vocab_statistics(Stream& stream, View<const T> logits_Rv, View<const std::int32_t> targets_R,
                      VocabPiece piece, View<acc_t<T>> statistics_3R) {
  check_piece(logits_Rv, piece);
  check_rows(logits_Rv.dim(0), targets_R.shape, statistics_3R.shape);
  const std::int64_t rows = logits_Rv.dim(0), ids = logits_Rv.dim(1);
  const Work work{4 * static_cast<double>(rows * ids),
                  logits_Rv.bytes() + targets_R.bytes() + statistics_3R.bytes()};
  const auto on_cpu = [&] {
    check_targets(targets_R, piece.vocabulary);
    parallel_for(rows, rows_per_task(ids), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t r = begin; r < end; ++r) {
        const SumOfRow<acc_t<T>> online = sum_of_row(logits_Rv.data + r * logits_Rv.strides[0], ids);
        const std::int32_t place = place_of(targets_R(r), piece);
        statistics_3R(0, r) = online.top;
        statistics_3R(1, r) = online.sum;
        statistics_3R(2, r) = place >= 0 && place < ids ? load(logits_Rv(r, place)) : acc_t<T>(0);
      }
    });
  };
  launch(stream, "vocab_statistics", work, on_cpu,
         [&] { cuda::vocab_statistics<T>(stream, logits_Rv, targets_R, piece, statistics_3R); });
}

template <class A>
void vocab_losses(Stream& stream, View<const A> statistics_P3R, View<const std::int32_t> targets_R,
                  View<A> loss_R) {
  check(statistics_P3R.ndim() == 3, "vocab_losses: statistics of every rank");
  check_rows(loss_R.dim(0), targets_R.shape, statistics_P3R.shape);
  const Work work{4 * static_cast<double>(statistics_P3R.dim(0) * loss_R.dim(0)),
                  statistics_P3R.bytes() + targets_R.bytes() + loss_R.bytes()};
  const auto on_cpu = [&] {
    for (std::int64_t r = 0; r < loss_R.dim(0); ++r) {
      const WholeRow<A> row = whole_row(statistics_P3R, r);
      loss_R(r) = targets_R(r) == kIgnoreIndex ? A(0) : row.lse - row.at_target;
    }
  };
  launch(stream, "vocab_losses", work, on_cpu,
         [&] { cuda::vocab_losses<A>(stream, statistics_P3R, targets_R, loss_R); });
}

template <class T>
void vocab_cross_entropy_in_place(Stream& stream, View<T> logits_Rv, View<const std::int32_t> targets_R,
                                  VocabPiece piece, View<const acc_t<T>> statistics_P3R, double scale,
                                  View<acc_t<T>> loss_R) {
  using A = acc_t<T>;
  check_piece(logits_Rv, piece);
  check(statistics_P3R.ndim() == 3 && loss_R.shape == targets_R.shape,
        "vocab_cross_entropy: statistics of every rank, a loss a row");
  check_rows(logits_Rv.dim(0), targets_R.shape, statistics_P3R.shape);
  const std::int64_t rows = logits_Rv.dim(0), ids = logits_Rv.dim(1);
  const double elements = static_cast<double>(rows * ids) * 3;
  const Work work{elements + 4 * static_cast<double>(statistics_P3R.dim(0) * rows),
                  2 * logits_Rv.bytes() + targets_R.bytes() + statistics_P3R.bytes() + loss_R.bytes()};
  const auto on_cpu = [&] {
    parallel_for(rows, rows_per_task(ids), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t r = begin; r < end; ++r) {
        const WholeRow<A> whole = whole_row(statistics_P3R, r);
        const std::int32_t place = place_of(targets_R(r), piece);
        T* row = logits_Rv.data + r * logits_Rv.strides[0];
        gradient_row<T>(row, place, whole.lse, static_cast<A>(scale), row, ids);
        loss_R(r) = place == kIgnoreIndex ? A(0) : whole.lse - whole.at_target;
      }
    });
  };
  const auto on_cuda = [&] {
    cuda::vocab_cross_entropy_in_place<T>(stream, logits_Rv, targets_R, piece, statistics_P3R, scale, loss_R);
  };
  launch(stream, "vocab_cross_entropy_in_place", work, on_cpu, on_cuda);
}

template void vocab_losses<float>(Stream&, View<const float>, View<const std::int32_t>, View<float>);
template void vocab_losses<double>(Stream&, View<const double>, View<const std::int32_t>, View<double>);

template void vocab_statistics<float>(Stream&, View<const float>, View<const std::int32_t>, VocabPiece,
                                      View<float>);
template void vocab_cross_entropy_in_place<float>(Stream&, View<float>, View<const std::int32_t>, VocabPiece,
                                                  View<const float>, double, View<float>);

template void vocab_statistics<double>(Stream&, View<const double>, View<const std::int32_t>, VocabPiece,
                                       View<double>);
template void vocab_cross_entropy_in_place<double>(Stream&, View<double>, View<const std::int32_t>,
                                                   VocabPiece, View<const double>, double, View<double>);

template void vocab_statistics<bf16>(Stream&, View<const bf16>, View<const std::int32_t>, VocabPiece,
                                     View<float>);
template void vocab_cross_entropy_in_place<bf16>(Stream&, View<bf16>, View<const std::int32_t>, VocabPiece,
                                                 View<const float>, double, View<float>);

}  // namespace ridge::kernels
