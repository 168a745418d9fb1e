// Attention of one new token a sequence, from the joint projection on: rotary embedding, append to the cache,
// attention over it. On a GPU one kernel, that begins to read the cache while the one ahead still runs.
//
// B sequences, S tokens of room (capacity), H query heads, G key-value heads, D head dim, P rows of the
// rotary tables, X = (H + 2 G) D.
#pragma once

#include <cstdint>

#include "core/base/dtype.h"
#include "core/base/stream.h"
#include "core/base/view.h"
#include "kernels/cached_attention.h"
#include "kernels/kv_cache.h"

namespace ridge::kernels {

/// Floats of scratch that decode_attention takes for up to these extents; enough for cached_attention of one
/// query, with which it may be shared. As there: zeroed once by its owner, and every call leaves it fit for
/// the next one on its stream.
std::int64_t decode_attention_scratch(std::int64_t batch, std::int64_t heads, std::int64_t kv_heads,
                                      std::int64_t head_dim);

/// rotary_append, then cached_attention, of one token a sequence: sequence b's token is at positions[b], its
/// heads of q, k and v in row b of qkv. o [B, H D]. Position -1: o = 0, nothing is read or written, as for
/// positions outside the cache, the tables or `options.keys` on a GPU. qkv's q may be rotated afterwards. A
/// sequence's bits do not depend on the batch's other members, nor on `keys`. qkv and o have dense rows and
/// do not overlap; tables and positions are dense.
///
/// On a GPU, bf16 with D 64 or 128, up to 8 query heads a key-value head, and a cache of bf16, fp8 or int8 is
/// one kernel; the rest are the two ops. The kernel reads positions, tables, and the cache below a position
/// before the kernels ahead of it have ended. So what writes those is followed, before this call, by a launch
/// that is not overlapped (kernels/device/overlap.cuh): a step begins with one.
template <class T>
void decode_attention(Stream& stream, View<T> qkv_BX, const QkvHeads& heads, View<const float> cos_PD2,
                      View<const float> sin_PD2, View<const std::int32_t> positions_B, const KvView& cache,
                      View<T> o_BX, const CachedAttentionOptions& options, View<float> scratch);

/// What `launch` runs on a GPU; arguments are checked already (decode_attention.cu).
namespace cuda {
void decode_attention(Stream& stream, const View<bf16>& qkv, const QkvHeads& heads,
                      const View<const float>& cos, const View<const float>& sin,
                      const View<const std::int32_t>& positions, const KvView& cache, const View<bf16>& o,
                      const CachedAttentionOptions& options, const View<float>& scratch);
}  // namespace cuda

}  // namespace ridge::kernels
