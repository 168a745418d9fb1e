// Products with a matrix.
#pragma once

#include <vector>

#include "core/tensor.h"

namespace ridge::ops {

/// y [..., N] = x [..., K] w' + bias, with w [N, K] and bias [N], the latter may be undefined.
/// The weight's gradient is f32 for bf16 weights.
Tensor linear(const Tensor& x, const Tensor& w_NK, const Tensor& bias_N = {});

/// Linears of one input, side by side: y [..., N0 + N1 + ...]. Weights that lie side by side in memory too
/// take part in one product, and so do their gradients. Biases may be undefined; as many as weights.
Tensor linear_group(const Tensor& x, const std::vector<Tensor>& weights, const std::vector<Tensor>& biases);

/// Adds scaling * x a' b' to columns column .. column + N - 1 of y [..., C], IN PLACE, and returns y: the
/// caller gives y up, which no other op may have saved. x [..., K]; a [R, K] and b [N, R] are f32 or y's
/// dtype, and are rounded to y's for the products.
Tensor add_low_rank(const Tensor& y, const Tensor& x, const Tensor& a_RK, const Tensor& b_NR,
                    std::int64_t column, double scaling);

/// [M, K] times [K, N]; either may be a transposed view.
Tensor matmul(const Tensor& a_MK, const Tensor& b_KN);

}  // namespace ridge::ops
