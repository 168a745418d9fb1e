// Table lookup.
#pragma once

#include "core/tensor.h"
#include "kernels/embedding.h"

namespace ridge::ops {

/// y [..., C] = table [V, C] at ids [...] (i32). An id outside [0, V) is a UserError. Of a table that is cut,
/// rows that are elsewhere give zeros.
Tensor embedding(const Tensor& table_VC, const Tensor& ids, kernels::TablePiece piece = {});

}  // namespace ridge::ops
