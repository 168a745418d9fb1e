// Attention of new tokens over a KV cache: sequences of unequal lengths, whose positions lie on the device.
// Few queries a sequence read keys and values once, cut along the keys (Dao et al., Flash-Decoding, 2023).
//
// B sequences, T queries of each, S keys of room (capacity), H query heads, G key-value heads, D head dim.
#pragma once

#include <cstdint>

#include "core/base/stream.h"
#include "core/base/view.h"
#include "kernels/kv_cache.h"

namespace ridge::kernels {

struct CachedAttentionOptions {
  double scale = 1;         // factor on q.k, usually D^-1/2
  std::int64_t window = 0;  // from position i key j is visible where i - window < j <= i; 0: no limit
  std::int64_t keys = 0;    // every position is below it; 0: the capacity. Work and a GPU's grid are as for
                            // so many, so that a captured graph serves all positions below
};

/// Floats of scratch that cached_attention takes for up to these extents. Zeroed once by its owner, before
/// the first call; a call leaves it fit for the next one, of any extents that it is large enough for. Calls
/// that share it run on one stream.
std::int64_t cached_attention_scratch(std::int64_t batch, std::int64_t queries, std::int64_t heads,
                                      std::int64_t kv_heads, std::int64_t head_dim);

/// Query (b, t) at positions[b, t] = p attends to keys 0 .. p of sequence b (`window`: to the last of them)
/// in the cache, its own among them; position -1: o = 0, nothing is read. A sequence's bits do not depend on
/// the batch's other members, nor on `keys`. q and o have dense last dims, any other strides, and may not
/// overlap; positions are dense. T: float or bf16. On the CPU a position outside the cache is an Error; a GPU
/// takes it for -1.
template <class T>
void cached_attention(Stream& stream, View<const T> q_BTHD, const KvView& cache,
                      View<const std::int32_t> positions_BT, View<T> o_BTHD,
                      const CachedAttentionOptions& options, View<float> scratch);

/// What `launch` runs on a GPU; arguments are checked already (cached_attention.cu).
namespace cuda {
template <class T>
void cached_attention(Stream& stream, View<const T> q_BTHD, const KvView& cache,
                      View<const std::int32_t> positions_BT, View<T> o_BTHD,
                      const CachedAttentionOptions& options, View<float> scratch);
}  // namespace cuda

}  // namespace ridge::kernels
