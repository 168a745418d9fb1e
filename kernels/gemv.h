// Few rows times a weight: reads every weight once, at memory bandwidth.
#pragma once

#include <cstdint>

namespace ridge::kernels {

inline constexpr std::int64_t kGemvRows = 4;

/// y[m, n] = alpha sum_k x[m, k] w[n, k] + beta y[m, n] for at most kGemvRows rows; x, w and y have dense
/// rows of the given strides. Instantiated for T in float, bf16.
template <class T>
void gemv_rows(const float* x_MK, std::int64_t m, std::int64_t k, const T* w_NK, std::int64_t w_stride,
               std::int64_t n, float* y_MN, std::int64_t y_stride);

}  // namespace ridge::kernels
