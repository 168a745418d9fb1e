// Weights of one input as one: fewer, larger products.
#pragma once

#include <optional>
#include <vector>

#include "core/quantized_weight.h"

namespace ridge::inference {

/// Tensors that differ in rows alone, below one another: they become slices of it, where they are not so
/// already.
Tensor join_tensors(const std::vector<Tensor*>& parts);
/// The rows of the weights below one another, where their format allows it: a scale belongs to one of them,
/// and none has a second level of scales. Their tensors become slices of its, with the same values, so that
/// nothing is held twice; what lies so already stays.
std::optional<QuantizedWeight> join_rows(const std::vector<QuantizedWeight*>& weights);

}  // namespace ridge::inference
