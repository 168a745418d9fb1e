// Products with a rank's piece of a weight, beside the collectives that they need (async tensor parallelism:
// Wang et al., ASPLOS 2023; Jangda et al., CoCoNet, 2022). B samples, T tokens, K inputs, N outputs.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "core/tensor.h"
#include "parallel/communicator.h"

namespace ridge::parallel {

class OneShotReduce;
class PeerPieces;

/// How the ranks of tp share layers.
struct TensorParallelism {
  Communicator* tp = nullptr;
  bool sequence_parallel = false;  // between layers each rank has its piece [B, T / tp, C] of the sequence
  int chunks = 1;                  // stages that a collective and its product are cut into, at the least
  /// Copy engines carry pieces of a sequence where chunks > 1; null: collectives do. A gather is cut into
  /// `chunks` stages then, but no more than ranks, and a sum into one for each rank.
  std::shared_ptr<PeerPieces> peers = nullptr;
  /// Sums the outputs of layers where it takes them, and the sequence is not cut; null: collectives do.
  std::shared_ptr<OneShotReduce> one_shot = nullptr;
};

/// y [B, T, N]: x w' + bias with this rank's rows of the weights, side by side; and x of all tokens, defined
/// where `want_whole`, for layers that add to y. Under sequence parallelism x is this rank's piece of the
/// sequence, which is gathered here, and again in the backward pass for the gradients of weights; else x is
/// the same on all ranks. The gradient of x is reduced beside those of the weights.
std::pair<Tensor, Tensor> column_linear(const TensorParallelism& how, const Tensor& x,
                                        const std::vector<Tensor>& weights, const std::vector<Tensor>& biases,
                                        bool want_whole = false);

/// y: the sum over ranks of x w', with this rank's columns of w [N, K] and of x [B, T, K], then + bias [N],
/// which may be undefined. Under sequence parallelism y is this rank's piece [B, T / tp, N].
Tensor row_linear(const TensorParallelism& how, const Tensor& x, const Tensor& w_NK, const Tensor& bias_N);

}  // namespace ridge::parallel
