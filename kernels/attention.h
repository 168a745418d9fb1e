// Scaled dot-product attention with an online softmax over key blocks (Dao, FlashAttention-2, 2023): causal
// or not, sliding window, grouped queries, and fewer queries than keys for a cache.
//
// B batch, T queries, S keys, H query heads, G key-value heads (H a multiple of G; query head h reads
// key-value head h / (H / G)), D head dim. Every view may have any strides with a dense last dim (lse_BHT:
// any strides).
#pragma once

#include <cstdint>

#include "core/base/dtype.h"
#include "core/base/launch.h"
#include "core/base/stream.h"
#include "core/base/view.h"

namespace ridge::kernels {

/// Query t stands at position i = q_offset + t among the keys 0 .. S-1.
struct AttentionOptions {
  double scale = 1;            // factor on q.k, usually D^-1/2
  std::int64_t window = 0;     // key j is visible from i where i - window < j <= i; 0: no limit; needs causal
  bool causal = true;          // key j is visible from i where j <= i
  std::int64_t q_offset = -1;  // -1: S - T, so that the last query sees the last key
  bool deterministic = true;  // backward on a GPU: the same bits every time; false: faster for long sequences
};

/// (query, key) pairs that are visible in one head.
double visible_pairs(std::int64_t queries, std::int64_t keys, const AttentionOptions& options);
/// 4 D flops a visible pair and query head; q, visible k and v, o (and lse) once.
template <class T>
Work attention_work(View<const T> q_BTHD, View<const T> k_BSGD, bool with_lse,
                    const AttentionOptions& options);
/// 10 D flops a visible pair and query head; every operand and gradient once.
template <class T>
Work attention_backward_work(View<const T> q_BTHD, View<const T> k_BSGD, const AttentionOptions& options);

/// o = softmax(scale q k^T + mask) v; lse = log sum exp of a query's visible scores (not written where
/// `lse_BHT` is an empty View without dims). A query that sees no key gets o = 0, lse = -inf. o may not
/// overlap an input.
template <class T>
void attention(Stream& stream, View<const T> q_BTHD, View<const T> k_BSGD, View<const T> v_BSGD,
               View<T> o_BTHD, View<acc_t<T>> lse_BHT, const AttentionOptions& options);

/// Writes (does not add to) dq, dk, dv from o's gradient and the o and lse of `attention` with the same
/// options. The same bits for any number of threads. Gradients may not overlap an input.
template <class T>
void attention_backward(Stream& stream, View<const T> do_BTHD, View<const T> q_BTHD, View<const T> k_BSGD,
                        View<const T> v_BSGD, View<const T> o_BTHD, View<const acc_t<T>> lse_BHT,
                        View<T> dq_BTHD, View<T> dk_BSGD, View<T> dv_BSGD, const AttentionOptions& options);

namespace attention_detail {
struct Problem;
struct Workspace;
}  // namespace attention_detail

/// What `launch` runs on a GPU; arguments are checked already (attention_forward.cu, attention_backward.cu).
/// `fused`: cuDNN may take it. `scratch` is what forward_scratch or backward_scratch says.
namespace cuda {
template <class T>
void attention(Stream& stream, const attention_detail::Problem& problem, View<const T> q_BTHD,
               View<const T> k_BSGD, View<const T> v_BSGD, View<T> o_BTHD, View<acc_t<T>> lse_BHT, bool fused,
               attention_detail::Workspace scratch);
template <class T>
void attention_backward(Stream& stream, const attention_detail::Problem& problem, View<const T> do_BTHD,
                        View<const T> q_BTHD, View<const T> k_BSGD, View<const T> v_BSGD,
                        View<const T> o_BTHD, View<const acc_t<T>> lse_BHT, View<T> dq_BTHD, View<T> dk_BSGD,
                        View<T> dv_BSGD, bool fused, attention_detail::Workspace scratch);
}  // namespace cuda

}  // namespace ridge::kernels
