// Softmax cross-entropy. R rows (tokens), V vocabulary, C channels.
#pragma once

#include "core/tensor.h"

namespace ridge::ops {

/// scale * sum over rows of -log softmax(logits [R, V])[target]; targets [R] i32, -100 is ignored. A scalar
/// in the accumulation type.
Tensor cross_entropy(const Tensor& logits_RV, const Tensor& targets_R, double scale = 1);

/// The same from the last hidden state [R, C] and the output weight [V, C], a chunk of rows at a time: full
/// logits never exist. Forward computes the gradients where they are wanted (as in Liger kernels, Hsu et al.,
/// 2024).
Tensor linear_cross_entropy(const Tensor& hidden_RC, const Tensor& weight_VC, const Tensor& targets_R,
                            double scale = 1);

/// -log softmax at the targets, one value a row [R], of the same chunks and without gradients: evaluation.
Tensor token_losses(const Tensor& hidden_RC, const Tensor& weight_VC, const Tensor& targets_R);

/// Rows of a chunk whose logits over `vocabulary` ids are at hand at once: on a CPU what a cache may hold, on
/// a GPU enough for a product at full speed.
std::int64_t loss_chunk_rows(Device device, std::int64_t vocabulary);

}  // namespace ridge::ops
