// Elementwise arithmetic on views of one shape, up to six dimensions, any strides; an input is broadcast by
// stride 0. An output may be one of the inputs (same pointer and strides), else it must not overlap them.
// Arithmetic in acc_t<T>, rounded once.
#pragma once

#include "core/base/dtype.h"
#include "core/base/stream.h"
#include "core/base/view.h"

namespace ridge::kernels {

template <class T>
void add(Stream& stream, View<const T> a, View<const T> b, View<T> y);
template <class T>
void sub(Stream& stream, View<const T> a, View<const T> b, View<T> y);
template <class T>
void mul(Stream& stream, View<const T> a, View<const T> b, View<T> y);
template <class T>
void div(Stream& stream, View<const T> a, View<const T> b, View<T> y);
/// y = a + factor * b
template <class T>
void add_scaled(Stream& stream, View<const T> a, View<const T> b, double factor, View<T> y);

template <class T>
void neg(Stream& stream, View<const T> x, View<T> y);
template <class T>
void exp(Stream& stream, View<const T> x, View<T> y);
template <class T>
void log(Stream& stream, View<const T> x, View<T> y);
template <class T>
void sqrt(Stream& stream, View<const T> x, View<T> y);
template <class T>
void square(Stream& stream, View<const T> x, View<T> y);
template <class T>
void tanh(Stream& stream, View<const T> x, View<T> y);
template <class T>
void sigmoid(Stream& stream, View<const T> x, View<T> y);
/// y = factor * x
template <class T>
void scale(Stream& stream, View<const T> x, double factor, View<T> y);
/// y = x + value
template <class T>
void add_scalar(Stream& stream, View<const T> x, double value, View<T> y);

/// y += x with y in the accumulation type: (float, float), (bf16, float), (double, double), (float, double).
template <class S, class D>
void accumulate(Stream& stream, View<const S> x, View<D> y);

/// What `launch` runs on a GPU; arguments are checked already (elementwise.cu).
namespace cuda {
template <class T>
void add(Stream& stream, View<const T> a, View<const T> b, View<T> y);
template <class T>
void sub(Stream& stream, View<const T> a, View<const T> b, View<T> y);
template <class T>
void mul(Stream& stream, View<const T> a, View<const T> b, View<T> y);
template <class T>
void div(Stream& stream, View<const T> a, View<const T> b, View<T> y);
template <class T>
void add_scaled(Stream& stream, View<const T> a, View<const T> b, double factor, View<T> y);
template <class T>
void neg(Stream& stream, View<const T> x, View<T> y);
template <class T>
void exp(Stream& stream, View<const T> x, View<T> y);
template <class T>
void log(Stream& stream, View<const T> x, View<T> y);
template <class T>
void sqrt(Stream& stream, View<const T> x, View<T> y);
template <class T>
void square(Stream& stream, View<const T> x, View<T> y);
template <class T>
void tanh(Stream& stream, View<const T> x, View<T> y);
template <class T>
void sigmoid(Stream& stream, View<const T> x, View<T> y);
template <class T>
void scale(Stream& stream, View<const T> x, double factor, View<T> y);
template <class T>
void add_scalar(Stream& stream, View<const T> x, double value, View<T> y);
template <class S, class D>
void accumulate(Stream& stream, View<const S> x, View<D> y);
}  // namespace cuda

}  // namespace ridge::kernels
