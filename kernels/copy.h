// Copies and conversions between views of one shape, up to six dimensions, any strides (input stride 0
// broadcasts). Output must not overlap the input unless it is the same memory of the same dtype and strides.
#pragma once

#include "core/base/dtype.h"
#include "core/base/stream.h"
#include "core/base/view.h"

namespace ridge::kernels {

template <class T>
void copy(Stream& stream, View<const T> x, View<T> y);

/// All pairs of dtypes. Floats round to nearest even; float to integer truncates towards zero and saturates,
/// NaN gives 0; integer to integer saturates.
template <class S, class D>
void convert(Stream& stream, View<const S> x, View<D> y);

/// The same with dtypes known at run time; strides in elements of each side.
void convert(Stream& stream, DType from, const void* x, const Shape& shape, const Strides& x_strides,
             DType to, void* y, const Strides& y_strides);

/// What `launch` runs on a GPU; arguments are checked already (copy.cu).
namespace cuda {
void convert(Stream& stream, DType from, const void* x, const Shape& shape, const Strides& x_strides,
             DType to, void* y, const Strides& y_strides);
}  // namespace cuda

}  // namespace ridge::kernels
