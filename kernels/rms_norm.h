// RMSNorm (Zhang and Sennrich, 2019) over the last dimension, with Hugging Face's rounding.
// R rows, C channels.
#pragma once

#include "core/base/dtype.h"
#include "core/base/stream.h"
#include "core/base/view.h"

namespace ridge::kernels {

/// y = T(x * inv_rms) * weight with inv_rms = 1/sqrt(mean(x^2) + eps): the normalised value is rounded to T
/// before the weight, as Hugging Face's Llama does. Rows are dense, of any row stride; weight is dense.
/// `inv_rms_R` keeps the factor for the backward pass; a view without dimensions: not wanted. y may be x.
template <class T>
void rms_norm(Stream& stream, View<const T> x_RC, View<const T> weight_C, View<T> y_RC,
              View<acc_t<T>> inv_rms_R, double eps);

/// Overwrites dx and dweight; a `dweight_C` without dimensions is not wanted. dx may be dy.
template <class T>
void rms_norm_backward(Stream& stream, View<const T> dy_RC, View<const T> x_RC, View<const T> weight_C,
                       View<const acc_t<T>> inv_rms_R, View<T> dx_RC, View<acc_t<T>> dweight_C);

}  // namespace ridge::kernels
