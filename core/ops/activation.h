// Activations.
#pragma once

#include "core/tensor.h"

namespace ridge::ops {

/// x sigmoid(x)
Tensor silu(const Tensor& x);
/// GELU by erf; `gelu_tanh` is the tanh approximation (Hendrycks and Gimpel, 2016).
Tensor gelu(const Tensor& x);
Tensor gelu_tanh(const Tensor& x);
/// silu(gate) * up (Shazeer, 2020)
Tensor swiglu(const Tensor& gate, const Tensor& up);
/// The same with gate and up side by side: [..., 2F] to [..., F].
Tensor swiglu_packed(const Tensor& gate_up);

}  // namespace ridge::ops
