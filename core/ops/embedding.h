// Table lookup.
#pragma once

#include "core/tensor.h"

namespace ridge::ops {

/// y [..., C] = table [V, C] at ids [...] (i32). An id outside [0, V) is a UserError.
Tensor embedding(const Tensor& table_VC, const Tensor& ids);

}  // namespace ridge::ops
