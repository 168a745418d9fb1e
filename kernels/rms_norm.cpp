#include "kernels/rms_norm.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <vector>

#include "core/base/launch.h"
#include "core/base/memory.h"
#include "core/base/threads.h"
#include "kernels/element.h"

namespace ridge::kernels {
namespace {

constexpr std::int64_t kChunkElements = 16384;  // of one chunk of rows, at the least

/// Rows of one chunk: at most 64 chunks of many rows, so that the weight's gradient has few partial sums.
std::int64_t rows_per_chunk(std::int64_t rows, std::int64_t channels) {
  const std::int64_t enough = kChunkElements / std::max<std::int64_t>(1, channels);
  return std::max<std::int64_t>({1, enough, (rows + 63) / 64});
}

template <class T>
struct Forward {
  View<const T> x_RC, delta_RC, weight_C;  // delta without dimensions: nothing is added
  View<T> sum_RC, y_RC;
  View<acc_t<T>> inv_rms_R;  // without dimensions: not wanted
  acc_t<T> eps;

  const T* input(std::int64_t r) const {
    if (delta_RC.ndim() == 0) return &x_RC(r);
    const T* next = &x_RC(r) + x_RC.strides[0];
    const auto add = [x = &x_RC(r), delta = &delta_RC(r), sum = &sum_RC(r)](std::int64_t i) {
      store(sum[i], load(x[i]) + load(delta[i]));
    };
    each_element(x_RC.dim(1), add, next, &delta_RC(r) + delta_RC.strides[0]);
    return &sum_RC(r);
  }

  void operator()(std::int64_t begin, std::int64_t end) const {
    const std::int64_t n = x_RC.dim(1), step = x_RC.strides[0];
    for (std::int64_t r = begin; r < end; ++r) {
      const T *x = input(r), *weight = weight_C.data;
      const auto squares = sum_terms<acc_t<T>>(n, [x](std::int64_t i) { return load(x[i]) * load(x[i]); });
      const acc_t<T> inv_rms = 1 / std::sqrt(squares / static_cast<acc_t<T>>(n) + eps);
      if (inv_rms_R.ndim() != 0) inv_rms_R(r) = inv_rms;
      const auto normalize = [x, weight, y = &y_RC(r), inv_rms](std::int64_t i) {
        store(y[i], round_to<T>(load(x[i]) * inv_rms) * load(weight[i]));
      };
      each_element(n, normalize, x + step);
    }
  }
};

template <class T>
struct Backward {
  View<const T> dy_RC, x_RC, weight_C, residual_RC;  // residual without dimensions: nothing is added
  View<const acc_t<T>> inv_rms_R;
  View<T> dx_RC;

  /// Adds to `dweight` where kWeight.
  template <bool kWeight>
  void run(std::int64_t begin, std::int64_t end, acc_t<T>* dweight) const {
    const std::int64_t n = x_RC.dim(1);
    for (std::int64_t r = begin; r < end; ++r) {
      const T *dy = &dy_RC(r), *x = &x_RC(r), *weight = weight_C.data;
      const auto projection =
          sum_terms<acc_t<T>>(n, [=](std::int64_t i) { return load(dy[i]) * load(weight[i]) * load(x[i]); });
      const acc_t<T> inv_rms = inv_rms_R(r), mean = projection * inv_rms / static_cast<acc_t<T>>(n);
      const T *next_dy = dy + dy_RC.strides[0], *next_x = x + x_RC.strides[0];
      const auto gradient = [=](std::int64_t i) {
        const acc_t<T> d = load(dy[i]), normalized = load(x[i]) * inv_rms;
        if constexpr (kWeight) dweight[i] += d * normalized;
        return inv_rms * (d * load(weight[i]) - normalized * mean);
      };
      if (residual_RC.ndim() == 0) {
        const auto alone = [gradient, dx = &dx_RC(r)](std::int64_t i) { store(dx[i], gradient(i)); };
        each_element(n, alone, next_dy, next_x);
      } else {
        const auto joined = [gradient, residual = &residual_RC(r), dx = &dx_RC(r)](std::int64_t i) {
          store(dx[i], load(residual[i]) + round_to<T>(gradient(i)));  // as norm and add apart would
        };
        each_element(n, joined, next_dy, next_x, &residual_RC(r) + residual_RC.strides[0]);
      }
    }
  }
};

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

/// With or without an addend.
template <class T>
void run_forward(Stream& stream, const char* op, View<const T> x_RC, View<const T> delta_RC,
                 View<const T> weight_C, View<T> sum_RC, View<T> y_RC, View<acc_t<T>> inv_rms_R, double eps) {
  check_shapes(x_RC, weight_C, y_RC.shape);
  const bool keep = inv_rms_R.ndim() != 0, adds = delta_RC.ndim() != 0;
  const std::int64_t rows = x_RC.dim(0), channels = x_RC.dim(1);
  check(y_RC.rows_dense() && (!keep || inv_rms_R.shape == Shape{rows}), "rms_norm: one inverse a row");
  const double bytes = x_RC.bytes() + weight_C.bytes() + y_RC.bytes() + (keep ? inv_rms_R.bytes() : 0) +
                       (adds ? delta_RC.bytes() + sum_RC.bytes() : 0);
  const Work work{(adds ? 5.0 : 4.0) * static_cast<double>(rows * channels), bytes};
  launch(
      stream, op, work,
      [&] {
        const Forward<T> forward{
            x_RC, delta_RC, weight_C, sum_RC, y_RC, inv_rms_R, static_cast<acc_t<T>>(eps)};
        parallel_for(rows, rows_per_chunk(rows, channels), forward);
      },
      [&] { cuda::rms_norm<T>(stream, x_RC, delta_RC, weight_C, sum_RC, y_RC, inv_rms_R, eps); });
}

template <class T>
void backward_on_cpu(const Backward<T>& backward, View<acc_t<T>> dweight_C) {
  const std::int64_t rows = backward.x_RC.dim(0), channels = backward.x_RC.dim(1);
  const std::int64_t grain = rows_per_chunk(rows, channels);
  if (dweight_C.ndim() == 0) {
    return parallel_for(rows, grain, [&](std::int64_t begin, std::int64_t end) {
      backward.template run<false>(begin, end, nullptr);
    });
  }
  const std::int64_t parts = std::max<std::int64_t>(1, (rows + grain - 1) / grain);
  std::vector<acc_t<T>> partial(static_cast<std::size_t>(parts * channels));
  parallel_for(rows, grain, [&](std::int64_t begin, std::int64_t end) {
    backward.template run<true>(begin, end, partial.data() + begin / grain * channels);
  });
  combine(partial, parts, dweight_C);
}

}  // namespace

template <class T>
void rms_norm(Stream& stream, View<const T> x_RC, View<const T> weight_C, View<T> y_RC,
              View<acc_t<T>> inv_rms_R, double eps) {
  run_forward<T>(stream, "rms_norm", x_RC, {}, weight_C, {}, y_RC, inv_rms_R, eps);
}

template <class T>
void add_rms_norm(Stream& stream, View<const T> x_RC, View<const T> delta_RC, View<const T> weight_C,
                  View<T> sum_RC, View<T> y_RC, View<acc_t<T>> inv_rms_R, double eps) {
  check(delta_RC.ndim() == 2 && delta_RC.shape == x_RC.shape && sum_RC.shape == x_RC.shape,
        "add_rms_norm: both addends and the sum of one shape");
  check(delta_RC.rows_dense() && sum_RC.rows_dense(), "add_rms_norm: rows are dense");
  run_forward<T>(stream, "add_rms_norm", x_RC, delta_RC, weight_C, sum_RC, y_RC, inv_rms_R, eps);
}

template <class T>
void rms_norm_backward(Stream& stream, View<const T> dy_RC, View<const T> x_RC, View<const T> weight_C,
                       View<const acc_t<T>> inv_rms_R, View<T> dx_RC, View<acc_t<T>> dweight_C,
                       View<const T> residual_RC) {
  check_shapes(x_RC, weight_C, dy_RC.shape);
  const bool wanted = dweight_C.ndim() != 0, adds = residual_RC.ndim() != 0;
  const std::int64_t rows = x_RC.dim(0), channels = x_RC.dim(1), parts = rms_norm_parts(rows);
  check(dx_RC.shape == x_RC.shape && dy_RC.rows_dense() && dx_RC.rows_dense(), "rms_norm: gradients as x");
  check(inv_rms_R.shape == Shape{rows}, "rms_norm: one inverse a row");
  check(!wanted || (dweight_C.shape == weight_C.shape && dweight_C.contiguous()), "rms_norm: dweight dense");
  check(!adds || (residual_RC.shape == x_RC.shape && residual_RC.rows_dense()), "rms_norm: residual as x");
  const double bytes = dy_RC.bytes() + x_RC.bytes() + weight_C.bytes() + inv_rms_R.bytes() + dx_RC.bytes() +
                       (wanted ? dweight_C.bytes() : 0) + (adds ? residual_RC.bytes() : 0);
  const double flops = ((wanted ? 9.0 : 7.0) + (adds ? 1.0 : 0.0)) * static_cast<double>(rows * channels);
  std::optional<Storage> scratch;
  View<acc_t<T>> partial_PC;
  if (wanted && planned_device(stream.device()) == Device::cuda) {
    const PurposeScope purpose(Purpose::workspace);
    scratch.emplace(stream.device(), parts * channels * static_cast<std::int64_t>(sizeof(acc_t<T>)));
    partial_PC = View<acc_t<T>>(static_cast<acc_t<T>*>(scratch->data()), {parts, channels});
  }
  launch(
      stream, "rms_norm_backward", Work{flops, bytes},
      [&] {
        backward_on_cpu<T>({dy_RC, x_RC, weight_C, residual_RC, inv_rms_R, dx_RC}, dweight_C);
      },
      [&] {
        cuda::rms_norm_backward<T>(stream, dy_RC, x_RC, weight_C, inv_rms_R, dx_RC, dweight_C, residual_RC,
                                   partial_PC);
      });
}

template void rms_norm<float>(Stream&, View<const float>, View<const float>, View<float>, View<float>,
                              double);
template void add_rms_norm<float>(Stream&, View<const float>, View<const float>, View<const float>,
                                  View<float>, View<float>, View<float>, double);
template void rms_norm_backward<float>(Stream&, View<const float>, View<const float>, View<const float>,
                                       View<const float>, View<float>, View<float>, View<const float>);

template void rms_norm<double>(Stream&, View<const double>, View<const double>, View<double>, View<double>,
                               double);
template void add_rms_norm<double>(Stream&, View<const double>, View<const double>, View<const double>,
                                   View<double>, View<double>, View<double>, double);
template void rms_norm_backward<double>(Stream&, View<const double>, View<const double>, View<const double>,
                                        View<const double>, View<double>, View<double>, View<const double>);

template void rms_norm<bf16>(Stream&, View<const bf16>, View<const bf16>, View<bf16>, View<float>, double);
template void add_rms_norm<bf16>(Stream&, View<const bf16>, View<const bf16>, View<const bf16>, View<bf16>,
                                 View<bf16>, View<float>, double);
template void rms_norm_backward<bf16>(Stream&, View<const bf16>, View<const bf16>, View<const bf16>,
                                      View<const float>, View<bf16>, View<float>, View<const bf16>);

}  // namespace ridge::kernels
