// Exact attention over a sequence whose parts lie on the ranks of a ring (Liu et al., Ring Attention, 2023):
// keys and values travel from rank to rank while each attends to those that it has, and partial results are
// joined by their log-sum-exps. Placement of tokens: context_parallel.h.
#pragma once

#include <vector>

#include "core/ops/attention.h"
#include "parallel/communicator.h"

namespace ridge::parallel {

/// As ops::rotary_attention for the tokens held here: qkv [B, T, (H + 2G) D], given up by the caller, to [B,
/// T, H D]. Tables [P, D/2] of the whole sequence, P >= T * ranks. Both passes are collective. Partial
/// outputs and gradients of bf16 are joined in f32 and in a fixed order: the same bits every time.
Tensor ring_attention(Communicator& ranks, const Tensor& qkv, const ops::HeadCounts& heads,
                      const Tensor& cos_PD2, const Tensor& sin_PD2, const kernels::AttentionOptions& options);

/// A call of attention: queries of one rank against keys of one rank, [begin, end) of their local tokens.
struct RingBlock {
  std::int64_t q_begin, q_end, k_begin, k_end;
  kernels::AttentionOptions options;
};
/// What `rank` of `ranks` has to do with the keys of `owner`, where each holds `tokens`: every pair of tokens
/// that the causal mask and the window of `options` show is in exactly one block.
std::vector<RingBlock> ring_blocks(std::int64_t tokens, int ranks, int rank, int owner,
                                   const kernels::AttentionOptions& options);

}  // namespace ridge::parallel
