// Reductions with fixed chunks: the same bits whatever the threads. Sums run blocked in acc_t<T>.
#pragma once

#include <cstdint>

#include "core/base/dtype.h"
#include "core/base/stream.h"
#include "core/base/view.h"

namespace ridge::kernels {

/// Sums x over the dimensions where y's extent is 1; same number of dimensions, any strides. Overwrites y.
template <class T>
void sum_to(Stream& stream, View<const T> x, View<T> y);
/// As sum_to, divided by the number of elements summed.
template <class T>
void mean_to(Stream& stream, View<const T> x, View<T> y);

/// Maximum over the last dimension; y is [..., 1]. A NaN in a row gives NaN. x's last extent is at least 1.
template <class T>
void max_last(Stream& stream, View<const T> x, View<T> y);
/// Index of the first maximum of every row of x [R, C]; NaN counts as the greatest.
template <class T>
void argmax_last(Stream& stream, View<const T> x_RC, View<std::int32_t> index_R);

/// sum += sum of squares of x, in f64, for gradient norms; `sum` is one element on the stream's device.
template <class T>
void add_sum_of_squares(Stream& stream, View<const T> x, View<double> sum);
/// Row-major index of the first element that is infinite or NaN; -1 where none is, and on meta. Waits for a
/// GPU.
template <class T>
std::int64_t first_non_finite(Stream& stream, View<const T> x);

/// What `launch` runs on a GPU; arguments are checked already (reduce.cu, reduce_sum.cu).
namespace cuda {
/// y = factor * sum
template <class T>
void sum_to(Stream& stream, View<const T> x, View<T> y, double factor);
template <class T>
void max_last(Stream& stream, View<const T> x, View<T> y);
template <class T>
void argmax_last(Stream& stream, View<const T> x_RC, View<std::int32_t> index_R);
template <class T>
void add_sum_of_squares(Stream& stream, View<const T> x, View<double> sum);
template <class T>
std::int64_t first_non_finite(Stream& stream, View<const T> x);
}  // namespace cuda

}  // namespace ridge::kernels
