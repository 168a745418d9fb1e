// Products with a matrix.
#pragma once

#include "core/tensor.h"

namespace ridge::ops {

/// y [..., N] = x [..., K] w' + bias, with w [N, K] and bias [N], the latter may be undefined.
/// The weight's gradient is f32 for bf16 weights.
Tensor linear(const Tensor& x, const Tensor& w_NK, const Tensor& bias_N = {});

/// [M, K] times [K, N]; either may be a transposed view.
Tensor matmul(const Tensor& a_MK, const Tensor& b_KN);

}  // namespace ridge::ops
