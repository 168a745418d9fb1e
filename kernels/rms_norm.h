// RMSNorm (Zhang and Sennrich, 2019) over the last dimension, with Hugging Face's rounding.
// R rows, C channels.
#pragma once

#include <cstdint>

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

/// The residual stream's step: sum = T(x + delta), y = rms_norm(sum). sum may be x or delta; y may be x or
/// delta, not sum.
template <class T>
void add_rms_norm(Stream& stream, View<const T> x_RC, View<const T> delta_RC, View<const T> weight_C,
                  View<T> sum_RC, View<T> y_RC, View<acc_t<T>> inv_rms_R, double eps);

/// Overwrites dx and dweight; a `dweight_C` without dimensions is not wanted. With `residual_RC`, the
/// gradient that came round the norm, dx = T(residual + gradient). dx may be dy or residual.
template <class T>
void rms_norm_backward(Stream& stream, View<const T> dy_RC, View<const T> x_RC, View<const T> weight_C,
                       View<const acc_t<T>> inv_rms_R, View<T> dx_RC, View<acc_t<T>> dweight_C,
                       View<const T> residual_RC = {});

/// Partial sums of the weight's gradient on a GPU: the same on every GPU, so that results are.
constexpr std::int64_t rms_norm_parts(std::int64_t rows) { return rows < 1 ? 1 : (rows < 256 ? rows : 256); }

/// What `launch` runs on a GPU; arguments are checked already (rms_norm.cu).
namespace cuda {

/// `delta_RC` and `sum_RC` without dimensions: nothing is added.
template <class T>
void rms_norm(Stream& stream, View<const T> x_RC, View<const T> delta_RC, View<const T> weight_C,
              View<T> sum_RC, View<T> y_RC, View<acc_t<T>> inv_rms_R, double eps);

/// `partial_PC` [rms_norm_parts(rows), channels], dense: scratch where the weight's gradient is wanted.
template <class T>
void rms_norm_backward(Stream& stream, View<const T> dy_RC, View<const T> x_RC, View<const T> weight_C,
                       View<const acc_t<T>> inv_rms_R, View<T> dx_RC, View<acc_t<T>> dweight_C,
                       View<const T> residual_RC, View<acc_t<T>> partial_PC);

}  // namespace cuda

}  // namespace ridge::kernels
