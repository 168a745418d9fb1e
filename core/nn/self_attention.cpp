#include "core/nn/self_attention.h"

namespace ridge::nn {

Tensor SelfAttention::forward(const Tensor& qkv, const ops::HeadCounts& heads,
                              const RotaryTable::Tables& tables,
                              const kernels::AttentionOptions& options) const {
  const std::int64_t T = qkv.dim(1);
  return ops::rotary_attention(qkv, heads, tables.cos.sliced(0, 0, T), tables.sin.sliced(0, 0, T), options);
}

}  // namespace ridge::nn
