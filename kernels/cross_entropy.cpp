#include "kernels/cross_entropy.h"

#include "core/base/launch.h"
#include "core/base/threads.h"
#include "kernels/cross_entropy_row.h"

namespace ridge::kernels {
namespace {

template <class T>
void check_shapes(View<const T> logits_RV, View<const std::int32_t> targets_R, const Shape& per_row) {
  check(logits_RV.ndim() == 2 && logits_RV.rows_dense(),
        "cross_entropy: logits [rows, vocabulary], dense rows");
  const Shape rows{logits_RV.dim(0)};
  check(targets_R.shape == rows && per_row == rows, "cross_entropy: one target and one result a row");
}

}  // namespace

template <class T>
void cross_entropy(Stream& stream, View<const T> logits_RV, View<const std::int32_t> targets_R,
                   View<acc_t<T>> loss_R, View<acc_t<T>> lse_R) {
  check_shapes(logits_RV, targets_R, loss_R.shape);
  check(lse_R.shape == loss_R.shape, "cross_entropy: one lse a row");
  const std::int64_t rows = logits_RV.dim(0), vocabulary = logits_RV.dim(1);
  const double bytes = logits_RV.bytes() + targets_R.bytes() + loss_R.bytes() + lse_R.bytes();
  const Work work{4 * static_cast<double>(rows * vocabulary), bytes};
  const auto on_cpu = [&] {
    check_targets(targets_R, vocabulary);
    parallel_for(rows, rows_per_task(vocabulary), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t r = begin; r < end; ++r) {
        const acc_t<T> lse = log_sum_exp(&logits_RV(r), vocabulary);
        const std::int32_t target = targets_R(r);
        lse_R(r) = lse;
        loss_R(r) = target == kIgnoreIndex ? acc_t<T>(0) : lse - load(logits_RV(r, target));
      }
    });
  };
  launch(stream, "cross_entropy", work, on_cpu,
         [&] { cuda::cross_entropy<T>(stream, logits_RV, targets_R, loss_R, lse_R); });
}

template <class T>
void cross_entropy_backward(Stream& stream, View<const T> logits_RV, View<const std::int32_t> targets_R,
                            View<const acc_t<T>> lse_R, View<const acc_t<T>> dloss_R, View<T> dlogits_RV) {
  check_shapes(logits_RV, targets_R, lse_R.shape);
  check(dloss_R.shape == lse_R.shape && dlogits_RV.shape == logits_RV.shape && dlogits_RV.rows_dense(),
        "cross_entropy: gradients as the values");
  const std::int64_t rows = logits_RV.dim(0), vocabulary = logits_RV.dim(1);
  const double bytes =
      logits_RV.bytes() + targets_R.bytes() + lse_R.bytes() + dloss_R.bytes() + dlogits_RV.bytes();
  const Work work{3 * static_cast<double>(rows * vocabulary), bytes};
  const auto on_cpu = [&] {
    check_targets(targets_R, vocabulary);
    parallel_for(rows, rows_per_task(vocabulary), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t r = begin; r < end; ++r)
        gradient_row(&logits_RV(r), targets_R(r), lse_R(r), dloss_R(r), &dlogits_RV(r), vocabulary);
    });
  };
  launch(stream, "cross_entropy_backward", work, on_cpu,
         [&] { cuda::cross_entropy_backward<T>(stream, logits_RV, targets_R, lse_R, dloss_R, dlogits_RV); });
}

template <class T>
void cross_entropy_in_place(Stream& stream, View<T> logits_RV, View<const std::int32_t> targets_R,
                            double scale, View<acc_t<T>> loss_R) {
  check_shapes(View<const T>(logits_RV), targets_R, loss_R.shape);
  const std::int64_t rows = logits_RV.dim(0), vocabulary = logits_RV.dim(1);
  const Work work{7 * static_cast<double>(rows * vocabulary),
                  2 * logits_RV.bytes() + targets_R.bytes() + loss_R.bytes()};
  const auto on_cpu = [&] {
    check_targets(targets_R, vocabulary);
    parallel_for(rows, rows_per_task(vocabulary), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t r = begin; r < end; ++r) {
        T* row = &logits_RV(r);
        const std::int32_t target = targets_R(r);
        const acc_t<T> lse = target == kIgnoreIndex ? acc_t<T>(0) : log_sum_exp<T>(row, vocabulary);
        loss_R(r) = target == kIgnoreIndex ? acc_t<T>(0) : lse - load(row[target]);
        gradient_row<T>(row, target, lse, static_cast<acc_t<T>>(scale), row, vocabulary);
      }
    });
  };
  launch(stream, "cross_entropy_in_place", work, on_cpu,
         [&] { cuda::cross_entropy_in_place<T>(stream, logits_RV, targets_R, scale, loss_R); });
}

template void cross_entropy<float>(Stream&, View<const float>, View<const std::int32_t>, View<float>,
                                   View<float>);
template void cross_entropy_backward<float>(Stream&, View<const float>, View<const std::int32_t>,
                                            View<const float>, View<const float>, View<float>);
template void cross_entropy_in_place<float>(Stream&, View<float>, View<const std::int32_t>, double,
                                            View<float>);

template void cross_entropy<double>(Stream&, View<const double>, View<const std::int32_t>, View<double>,
                                    View<double>);
template void cross_entropy_backward<double>(Stream&, View<const double>, View<const std::int32_t>,
                                             View<const double>, View<const double>, View<double>);
template void cross_entropy_in_place<double>(Stream&, View<double>, View<const std::int32_t>, double,
                                             View<double>);

template void cross_entropy<bf16>(Stream&, View<const bf16>, View<const std::int32_t>, View<float>,
                                  View<float>);
template void cross_entropy_backward<bf16>(Stream&, View<const bf16>, View<const std::int32_t>,
                                           View<const float>, View<const float>, View<bf16>);
template void cross_entropy_in_place<bf16>(Stream&, View<bf16>, View<const std::int32_t>, double,
                                           View<float>);

}  // namespace ridge::kernels
