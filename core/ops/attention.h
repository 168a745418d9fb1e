// Attention and rotary positions. B batch, T queries, S keys, H query heads, G key-value heads, D head dim.
#pragma once

#include "core/tensor.h"
#include "kernels/attention.h"

namespace ridge::ops {

/// softmax(scale q k' + mask) v. q [B, T, H, D]; k, v [B, S, G, D]; H a multiple of G.
Tensor attention(const Tensor& q_BTHD, const Tensor& k_BSGD, const Tensor& v_BSGD,
                 const kernels::AttentionOptions& options);

/// Rotates the pairs (x[j], x[j + D/2]) by the angle in row positions[b, t] of the tables [P, D/2], f32; row
/// t where `positions_BT` (i32) is undefined.
Tensor rotary(const Tensor& x_BTHD, const Tensor& cos_PD2, const Tensor& sin_PD2,
              const Tensor& positions_BT = {});

/// Rotary positions 0 .. T-1 and self-attention on q, k and v side by side: [B, T, (H + 2G) D] to [B, T, H
/// D]. Rotates IN PLACE: the caller gives `qkv` up, which no other op may have saved.
struct HeadCounts {
  std::int64_t heads, kv_heads, head_dim;
};
Tensor rotary_attention(const Tensor& qkv, const HeadCounts& heads, const Tensor& cos_PD2,
                        const Tensor& sin_PD2, const kernels::AttentionOptions& options);

}  // namespace ridge::ops
