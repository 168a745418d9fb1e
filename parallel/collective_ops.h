// Collectives that gradients cross, in pairs: the backward pass of one is the other (Shoeybi et al.,
// Megatron-LM, 2019; Korthikanti et al., 2022). B samples, T tokens, C channels. Sums are in the dtype of the
// activations. Every rank calls the same ones, and runs the same backward passes. With one rank each is the
// identity.
#pragma once

#include "core/tensor.h"
#include "parallel/communicator.h"

namespace ridge::parallel {

class OneShotReduce;

/// x, which is the same on all ranks; its gradient is the sum of theirs.
Tensor copy_to_tp(const Tensor& x, Communicator& tp);
/// The sum of the ranks' x IN PLACE: the caller gives x up, which no other op may have saved. Its gradient is
/// the sum's. By `one_shot`, of the same ranks, where there is one and it takes x.
Tensor reduce_from_tp(const Tensor& x, Communicator& tp, const OneShotReduce* one_shot = nullptr);

/// The sequence from the ranks' pieces of it: [B, T / tp, C] to [B, T, C]; gradients are summed and cut.
Tensor gather_sequence(const Tensor& x_BtC, Communicator& tp);
/// This rank's piece of the sum: [B, T, C] to [B, T / tp, C]; gradients are gathered. A UserError where tp
/// does not divide T.
Tensor scatter_sequence(const Tensor& x_BTC, Communicator& tp);

/// Rows from columns: every rank's [..., n_r] side by side, [..., N]. Rank r holds the columns from r *
/// ceil(N / tp) on. Its gradient is this rank's columns of the whole's, which must be the same on all ranks.
Tensor gather_columns(const Tensor& x, std::int64_t total, Communicator& tp);

/// A UserError where `ranks` do not divide a sequence of `tokens`.
void check_sequence(std::int64_t tokens, int ranks);

}  // namespace ridge::parallel
