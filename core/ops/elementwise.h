// Arithmetic by element, with NumPy's broadcasting, and dropout.
#pragma once

#include "core/tensor.h"

namespace ridge::ops {

Tensor add(const Tensor& a, const Tensor& b);
Tensor sub(const Tensor& a, const Tensor& b);
Tensor mul(const Tensor& a, const Tensor& b);
Tensor div(const Tensor& a, const Tensor& b);

Tensor exp(const Tensor& x);
Tensor log(const Tensor& x);
Tensor sqrt(const Tensor& x);
Tensor tanh(const Tensor& x);
Tensor sigmoid(const Tensor& x);

/// factor * x
Tensor scale(const Tensor& x, double factor);
/// a + factor * b, of one shape
Tensor add_scaled(const Tensor& a, const Tensor& b, double factor);

/// Zeroes elements with probability p and scales the others by 1 / (1 - p). The mask comes from
/// random_state(): dimension 0 counts samples from its `first_row`.
Tensor dropout(const Tensor& x, double p);

}  // namespace ridge::ops
