// Normalisation.
#pragma once

#include "core/tensor.h"

namespace ridge::ops {

/// RMSNorm over the last dimension (Zhang and Sennrich, 2019), rounded as Hugging Face does; weight [C].
Tensor rms_norm(const Tensor& x, const Tensor& weight_C, double eps);

}  // namespace ridge::ops
