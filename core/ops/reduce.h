// Sums and means.
#pragma once

#include "core/tensor.h"

namespace ridge::ops {

/// Sums x down to a shape that broadcasts to x's.
Tensor sum_to(const Tensor& x, const Shape& shape);
/// Over all elements: a tensor without dimensions.
Tensor sum(const Tensor& x);
Tensor mean(const Tensor& x);

}  // namespace ridge::ops
