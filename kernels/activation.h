// Activations of the feed-forward block, on [R, C] views with dense rows of any row stride.
// Outputs may be the inputs (in place). Arithmetic in acc_t<T>, rounded once.
#pragma once

#include "core/base/dtype.h"
#include "core/base/stream.h"
#include "core/base/view.h"

namespace ridge::kernels {

/// Which GELU (Hendrycks and Gimpel, 2016): exact by erf, or the tanh approximation.
enum class Gelu { erf, tanh };

/// y = x * sigmoid(x)
template <class T>
void silu(Stream& stream, View<const T> x_RC, View<T> y_RC);
template <class T>
void silu_backward(Stream& stream, View<const T> dy_RC, View<const T> x_RC, View<T> dx_RC);

template <class T>
void gelu(Stream& stream, View<const T> x_RC, View<T> y_RC, Gelu variant);
template <class T>
void gelu_backward(Stream& stream, View<const T> dy_RC, View<const T> x_RC, View<T> dx_RC, Gelu variant);

/// y = T(silu(gate)) * up (Shazeer, 2020); the activation is rounded to T first, as Hugging Face does.
template <class T>
void swiglu(Stream& stream, View<const T> gate_RC, View<const T> up_RC, View<T> y_RC);
template <class T>
void swiglu_backward(Stream& stream, View<const T> dy_RC, View<const T> gate_RC, View<const T> up_RC,
                     View<T> dgate_RC, View<T> dup_RC);

/// What `launch` runs on a GPU; arguments are checked already (activation.cu).
namespace cuda {
template <class T>
void silu(Stream& stream, View<const T> x_RC, View<T> y_RC);
template <class T>
void silu_backward(Stream& stream, View<const T> dy_RC, View<const T> x_RC, View<T> dx_RC);
template <class T>
void gelu(Stream& stream, View<const T> x_RC, View<T> y_RC, Gelu variant);
template <class T>
void gelu_backward(Stream& stream, View<const T> dy_RC, View<const T> x_RC, View<T> dx_RC, Gelu variant);
template <class T>
void swiglu(Stream& stream, View<const T> gate_RC, View<const T> up_RC, View<T> y_RC);
template <class T>
void swiglu_backward(Stream& stream, View<const T> dy_RC, View<const T> gate_RC, View<const T> up_RC,
                     View<T> dgate_RC, View<T> dup_RC);
}  // namespace cuda

}  // namespace ridge::kernels
