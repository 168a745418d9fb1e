// Few rows times a weight: reads every weight once, at memory bandwidth.
#pragma once

#include <cstdint>

#include "core/base/dtype.h"

namespace ridge::kernels {

inline constexpr std::int64_t kGemvRows = 4;

/// y[m, n] = sum_k x[m, k] w[n, k] for 1 to kGemvRows rows: x [M, K] contiguous, w [N, K] and y [M, N] with
/// dense rows of the given strides. Sums are kept in f32. `scratch_MK`, for bf16 weights alone, holds x in
/// another order. Instantiated for weights in float and bf16.
template <class T>
void gemv_rows(const float* x_MK, std::int64_t m, std::int64_t k, const T* w_NK, std::int64_t w_stride,
               std::int64_t n, float* y_MN, std::int64_t y_stride, float* scratch_MK);

}  // namespace ridge::kernels
