// Softmax cross-entropy of a vocabulary that is cut over tp: whole logits never exist on one rank. B samples,
// T tokens, R = B T, C channels, v ids here.
#pragma once

#include "core/tensor.h"
#include "kernels/vocab_cross_entropy.h"
#include "parallel/overlapped_linear.h"

namespace ridge::parallel {

/// scale * sum over tokens of -log softmax(hidden w')[target], the same on every rank. `hidden` [..., C] is
/// whole, or this rank's piece [B, T / tp, C] under sequence parallelism; weight [v, C]; targets [R] i32 of
/// all tokens. A chunk of rows at a time; forward computes the gradients where they are wanted, and reduces
/// that of `hidden` beside the chunks that follow.
Tensor vocab_linear_cross_entropy(const TensorParallelism& how, const Tensor& hidden, const Tensor& weight_vC,
                                  const Tensor& targets_R, kernels::VocabPiece piece, double scale);
/// Their losses [R], of the same chunks and without gradients.
Tensor vocab_token_losses(const TensorParallelism& how, const Tensor& hidden, const Tensor& weight_vC,
                          const Tensor& targets_R, kernels::VocabPiece piece);

/// The same from logits [R, v] that are there.
Tensor vocab_cross_entropy(Communicator& tp, const Tensor& logits_Rv, const Tensor& targets_R,
                           kernels::VocabPiece piece, double scale);
/// Their losses [R], without gradients.
Tensor vocab_row_losses(Communicator& tp, const Tensor& logits_Rv, const Tensor& targets_R,
                        kernels::VocabPiece piece);

}  // namespace ridge::parallel
