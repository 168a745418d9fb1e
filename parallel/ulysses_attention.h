// Attention over a sequence whose parts lie on several ranks: two all-to-alls give each rank the whole
// sequence for some of the heads and back (Jacobs et al., DeepSpeed Ulysses, 2023). Placement of tokens:
// context_parallel.h.
#pragma once

#include "core/ops/attention.h"
#include "parallel/communicator.h"

namespace ridge::parallel {

/// As ops::rotary_attention for the tokens held here: qkv [B, T, (H + 2G) D] to [B, T, H D]. Tables [P, D/2]
/// of the whole sequence, P >= T * ranks. Both passes are collective. A UserError where the heads cannot be
/// divided (check_context_heads). The gradients of a key-value head that ranks share are summed in f32.
Tensor ulysses_attention(Communicator& ranks, const Tensor& qkv, const ops::HeadCounts& heads,
                         const Tensor& cos_PD2, const Tensor& sin_PD2,
                         const kernels::AttentionOptions& options);

}  // namespace ridge::parallel
