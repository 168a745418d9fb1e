// Products with matrices in weight formats.
#pragma once

#include <vector>

#include "core/quantized_weight.h"

namespace ridge::ops {

/// y [..., N0 + N1 + ...] = x [..., K] w' + bias of each weight [N_i, K], side by side. Biases [N_i] may be
/// undefined; as many as weights. Few rows are multiplied with codes as they are; for more, and for the
/// gradient of x, a weight is dequantized to x's dtype first. The weights have no gradients.
Tensor quantized_linear(const Tensor& x, const std::vector<const QuantizedWeight*>& weights,
                        const std::vector<Tensor>& biases);

}  // namespace ridge::ops
