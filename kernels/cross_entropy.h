// Softmax cross entropy of integer targets, rows of logits over the vocabulary. R rows, V ids.
#pragma once

#include <cstdint>

#include "core/base/dtype.h"
#include "core/base/stream.h"
#include "core/base/view.h"

namespace ridge::kernels {

/// A target that counts for nothing: loss 0, gradient 0.
inline constexpr std::int64_t kIgnoreIndex = -100;

/// loss = lse - logits[target], lse = log(sum(exp(logits))); one online pass (Milakov and Gimelshein, 2018).
/// A target that is neither in [0, V) nor kIgnoreIndex is a UserError that names row, id and V.
template <class T>
void cross_entropy(Stream& stream, View<const T> logits_RV, View<const std::int32_t> targets_R,
                   View<acc_t<T>> loss_R, View<acc_t<T>> lse_R);

/// dlogits = (softmax(logits) - onehot(target)) * dloss; may be in place. Same errors.
template <class T>
void cross_entropy_backward(Stream& stream, View<const T> logits_RV, View<const std::int32_t> targets_R,
                            View<const acc_t<T>> lse_R, View<const acc_t<T>> dloss_R, View<T> dlogits_RV);

/// Both at once: loss as above, and logits become (softmax(logits) - onehot(target)) * scale. Same errors.
template <class T>
void cross_entropy_in_place(Stream& stream, View<T> logits_RV, View<const std::int32_t> targets_R,
                            double scale, View<acc_t<T>> loss_R);

/// What `launch` runs on a GPU; shapes are checked already (cross_entropy.cu). A bad target counts for
/// nothing, and is an error once the stream is waited for.
namespace cuda {
template <class T>
void cross_entropy(Stream& stream, View<const T> logits_RV, View<const std::int32_t> targets_R,
                   View<acc_t<T>> loss_R, View<acc_t<T>> lse_R);
template <class T>
void cross_entropy_backward(Stream& stream, View<const T> logits_RV, View<const std::int32_t> targets_R,
                            View<const acc_t<T>> lse_R, View<const acc_t<T>> dloss_R, View<T> dlogits_RV);
template <class T>
void cross_entropy_in_place(Stream& stream, View<T> logits_RV, View<const std::int32_t> targets_R,
                            double scale, View<acc_t<T>> loss_R);
}  // namespace cuda

}  // namespace ridge::kernels
