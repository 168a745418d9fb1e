// The same elements, arranged otherwise.
#pragma once

#include <vector>

#include "core/tensor.h"

namespace ridge::ops {

/// One extent may be -1: what is left over. Copies where x is not contiguous.
Tensor reshape(const Tensor& x, const Shape& shape);
/// A view.
Tensor transpose(const Tensor& x, int dim0, int dim1);
/// x[..., begin:end, ...] in dimension `dim`: a view.
Tensor slice(const Tensor& x, int dim, std::int64_t begin, std::int64_t end);
/// Joins along `dim`.
Tensor concat(const Tensor& a, const Tensor& b, int dim);
/// Another dtype; gradients are cast back.
Tensor cast(const Tensor& x, DType dtype);

}  // namespace ridge::ops
