// Joins what attention makes of different keys for the same queries (Milakov and Gimelshein, 2018; Liu et
// al., Ring Attention, 2023): outputs by their log-sum-exps, gradients by sums.
//
// B batch, T queries, H heads, D head dim. A, B and Y are one type T or its accumulation type. Any strides,
// the last dim dense.
#pragma once

#include "core/base/dtype.h"
#include "core/base/stream.h"
#include "core/base/view.h"

namespace ridge::kernels {

/// y = (a e^lse_a + b e^lse_b) / (e^lse_a + e^lse_b), lse_y = log(e^lse_a + e^lse_b); where neither saw a key
/// (-inf), y = a. y may be a or b, and lse_y may be lse_a or lse_b: the same memory and strides.
template <class A, class B, class Y>
void merge_attention(Stream& stream, View<const A> a_BTHD, View<const acc_t<B>> lse_a_BHT,
                     View<const B> b_BTHD, View<const acc_t<B>> lse_b_BHT, View<Y> y_BTHD,
                     View<acc_t<B>> lse_y_BHT);

/// y = a + b of any one shape, rounded once. y may be a or b.
template <class A, class B, class Y>
void add_parts(Stream& stream, View<const A> a, View<const B> b, View<Y> y);

/// What `launch` runs on a GPU; arguments are checked already (attention_merge.cu).
namespace cuda {
template <class A, class B, class Y>
void merge_attention(Stream& stream, View<const A> a_BTHD, View<const acc_t<B>> lse_a_BHT,
                     View<const B> b_BTHD, View<const acc_t<B>> lse_b_BHT, View<Y> y_BTHD,
                     View<acc_t<B>> lse_y_BHT);
template <class A, class B, class Y>
void add_parts(Stream& stream, View<const A> a, View<const B> b, View<Y> y);
}  // namespace cuda

}  // namespace ridge::kernels
