#include "kernels/rms_norm.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/base/launch.h"
#include "core/base/threads.h"
#include "kernels/element.h"

namespace ridge::kernels {
namespace {

constexpr std::int64_t kChunkElements = 16384;  // of one chunk of rows

std::int64_t rows_per_chunk(std::int64_t channels) {
  return std::max<std::int64_t>(1, kChunkElements / std::max<std::int64_t>(1, channels));
}

/// Rows that share one partial sum of the weight's gradient: at most 64 partial sums, whatever the threads.
std::int64_t rows_per_partial(std::int64_t rows, std::int64_t channels) {
  return std::max(rows_per_chunk(channels), (rows + 63) / 64);
}

template <class T>
acc_t<T> sum_of_squares(const T* x, std::int64_t n) {
  acc_t<T> sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t i = 0; i < n; ++i) sum += load(x[i]) * load(x[i]);
  return sum;
}

template <class T>
void normalize_row(const T* x, const T* weight, acc_t<T> inv_rms, T* y, std::int64_t n) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) store(y[i], round_to<T>(load(x[i]) * inv_rms) * load(weight[i]));
}

/// Mean over the row of dy * weight * normalised x.
template <class T>
acc_t<T> mean_projection(const T* dy, const T* x, const T* weight, acc_t<T> inv_rms, std::int64_t n) {
  acc_t<T> sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t i = 0; i < n; ++i) sum += load(dy[i]) * load(weight[i]) * load(x[i]);
  return sum * inv_rms / static_cast<acc_t<T>>(n);
}

template <class T>
void add_weight_gradient(const T* dy, const T* x, acc_t<T> inv_rms, acc_t<T>* dweight, std::int64_t n) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) dweight[i] += load(dy[i]) * (load(x[i]) * inv_rms);
}

template <class T>
void input_gradient(const T* dy, const T* x, const T* weight, acc_t<T> inv_rms, acc_t<T> mean, T* dx,
                    std::int64_t n) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) {
    store(dx[i], inv_rms * (load(dy[i]) * load(weight[i]) - load(x[i]) * inv_rms * mean));
  }
}

/// dweight[i] = sum over p of partial[p][i], as a tree: `partial` is spent.
template <class A>
void combine(std::vector<A>& partial, std::int64_t parts, View<A> dweight_C) {
  const std::int64_t channels = dweight_C.dim(0);
  for (std::int64_t step = 1; step < parts; step *= 2) {
    for (std::int64_t p = 0; p + step < parts; p += 2 * step) {
      A* into = partial.data() + p * channels;
      const A* from = into + step * channels;
#pragma omp simd
      for (std::int64_t i = 0; i < channels; ++i) into[i] += from[i];
    }
  }
  std::copy_n(partial.data(), channels, dweight_C.data);
}

template <class T>
void check_shapes(View<const T> x_RC, View<const T> weight_C, const Shape& other) {
  check(x_RC.ndim() == 2 && x_RC.shape == other, "rms_norm: input and output [rows, channels] of one shape");
  check(weight_C.ndim() == 1 && weight_C.dim(0) == x_RC.dim(1), "rms_norm: one weight a channel");
  check(x_RC.rows_dense() && weight_C.rows_dense(), "rms_norm: rows and weight are dense");
}

}  // namespace

template <class T>
void rms_norm(Stream& stream, View<const T> x_RC, View<const T> weight_C, View<T> y_RC,
              View<acc_t<T>> inv_rms_R, double eps) {
  check_shapes(x_RC, weight_C, y_RC.shape);
  const bool keep = inv_rms_R.ndim() != 0;
  const std::int64_t rows = x_RC.dim(0), channels = x_RC.dim(1);
  check(y_RC.rows_dense() && (!keep || inv_rms_R.shape == Shape{rows}), "rms_norm: one inverse a row");
  const double bytes = x_RC.bytes() + weight_C.bytes() + y_RC.bytes() + (keep ? inv_rms_R.bytes() : 0);
  launch(stream, "rms_norm", Work{4 * static_cast<double>(rows * channels), bytes}, [&] {
    parallel_for(rows, rows_per_chunk(channels), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t r = begin; r < end; ++r) {
        const T* x = &x_RC(r);
        const acc_t<T> mean = sum_of_squares(x, channels) / static_cast<acc_t<T>>(channels);
        const acc_t<T> inv_rms = 1 / std::sqrt(mean + static_cast<acc_t<T>>(eps));
        normalize_row(x, weight_C.data, inv_rms, &y_RC(r), channels);
        if (keep) inv_rms_R(r) = inv_rms;
      }
    });
  });
}

template <class T>
void rms_norm_backward(Stream& stream, View<const T> dy_RC, View<const T> x_RC, View<const T> weight_C,
                       View<const acc_t<T>> inv_rms_R, View<T> dx_RC, View<acc_t<T>> dweight_C) {
  check_shapes(x_RC, weight_C, dy_RC.shape);
  const bool wanted = dweight_C.ndim() != 0;
  const std::int64_t rows = x_RC.dim(0), channels = x_RC.dim(1);
  check(dx_RC.shape == x_RC.shape && dy_RC.rows_dense() && dx_RC.rows_dense(), "rms_norm: gradients as x");
  check(inv_rms_R.shape == Shape{rows}, "rms_norm: one inverse a row");
  check(!wanted || (dweight_C.shape == weight_C.shape && dweight_C.contiguous()), "rms_norm: dweight dense");
  const double bytes = dy_RC.bytes() + x_RC.bytes() + weight_C.bytes() + inv_rms_R.bytes() + dx_RC.bytes() +
                       (wanted ? dweight_C.bytes() : 0);
  const double flops = (wanted ? 9.0 : 7.0) * static_cast<double>(rows * channels);
  launch(stream, "rms_norm_backward", Work{flops, bytes}, [&] {
    const std::int64_t grain = rows_per_partial(rows, channels);
    const std::int64_t parts = (rows + grain - 1) / grain;
    std::vector<acc_t<T>> partial(
        wanted ? static_cast<std::size_t>(std::max<std::int64_t>(1, parts) * channels) : 0);
    parallel_for(parts, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t r = begin * grain; r < std::min(rows, end * grain); ++r) {
        const T *dy = &dy_RC(r), *x = &x_RC(r);
        const acc_t<T> inv_rms = inv_rms_R(r);
        const acc_t<T> mean = mean_projection(dy, x, weight_C.data, inv_rms, channels);
        if (wanted) add_weight_gradient(dy, x, inv_rms, partial.data() + r / grain * channels, channels);
        input_gradient(dy, x, weight_C.data, inv_rms, mean, &dx_RC(r), channels);
      }
    });
    if (wanted) combine(partial, parts, dweight_C);
  });
}

template void rms_norm<float>(Stream&, View<const float>, View<const float>, View<float>, View<float>,
                              double);
template void rms_norm_backward<float>(Stream&, View<const float>, View<const float>, View<const float>,
                                       View<const float>, View<float>, View<float>);

template void rms_norm<double>(Stream&, View<const double>, View<const double>, View<double>, View<double>,
                               double);
template void rms_norm_backward<double>(Stream&, View<const double>, View<const double>, View<const double>,
                                        View<const double>, View<double>, View<double>);

template void rms_norm<bf16>(Stream&, View<const bf16>, View<const bf16>, View<bf16>, View<float>, double);
template void rms_norm_backward<bf16>(Stream&, View<const bf16>, View<const bf16>, View<const bf16>,
                                      View<const float>, View<bf16>, View<float>);

}  // namespace ridge::kernels
