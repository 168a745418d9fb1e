// Normalisation.
#pragma once

#include <utility>

#include "core/tensor.h"

namespace ridge::ops {

/// RMSNorm over the last dimension (Zhang and Sennrich, 2019), rounded as Hugging Face does; weight [C].
Tensor rms_norm(const Tensor& x, const Tensor& weight_C, double eps);

/// The residual stream's step in one pass: {x + delta, rms_norm(x + delta)}.
std::pair<Tensor, Tensor> add_rms_norm(const Tensor& x, const Tensor& delta, const Tensor& weight_C,
                                       double eps);

}  // namespace ridge::ops
