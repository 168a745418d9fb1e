// How tokens look at each other: rotary positions and causal attention.
#pragma once

#include "core/nn/rotary.h"
#include "core/ops/attention.h"

namespace ridge::nn {

/// The tokens at hand may be a part of a longer sequence, whose other parts are elsewhere.
class SelfAttention {
 public:
  virtual ~SelfAttention() = default;
  /// The length of the whole sequence where `tokens` of it are here.
  virtual std::int64_t positions(std::int64_t tokens) const { return tokens; }
  /// qkv [B, T, (H + 2G) D] side by side, given up by the caller, to [B, T, H D]; `tables` of at least
  /// positions(T) rows.
  virtual Tensor forward(const Tensor& qkv, const ops::HeadCounts& heads, const RotaryTable::Tables& tables,
                         const kernels::AttentionOptions& options) const;
};

}  // namespace ridge::nn
