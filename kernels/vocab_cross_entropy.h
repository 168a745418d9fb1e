// Softmax cross entropy of a vocabulary that is cut among ranks (Shoeybi et al., 2019). R rows, v ids here, P
// ranks. Each rank sums up its logits, all ranks gather those statistics, and each finishes alone.
#pragma once

#include <cstdint>

#include "core/base/dtype.h"
#include "core/base/stream.h"
#include "core/base/view.h"

namespace ridge::kernels {

/// The logits here are those of ids first .. first + v - 1 of `vocabulary`; v may be 0.
struct VocabPiece {
  std::int64_t first = 0, vocabulary = 0;
};

/// Of each row's logits here: the greatest, the sum of exp(logit - greatest), and the target's logit; -inf, 0
/// and 0 where there is none. One online pass. A target that is neither in [0, vocabulary) nor kIgnoreIndex
/// is a UserError that names row, id and vocabulary, on every rank.
template <class T>
void vocab_statistics(Stream& stream, View<const T> logits_Rv, View<const std::int32_t> targets_R,
                      VocabPiece piece, View<acc_t<T>> statistics_3R);

/// loss = log(sum(exp(logits))) - logits[target] of whole rows, from every rank's statistics. A: float,
/// double.
template <class A>
void vocab_losses(Stream& stream, View<const A> statistics_P3R, View<const std::int32_t> targets_R,
                  View<A> loss_R);

/// The same, and the logits here become (softmax(logits) - onehot(target)) * scale.
template <class T>
void vocab_cross_entropy_in_place(Stream& stream, View<T> logits_Rv, View<const std::int32_t> targets_R,
                                  VocabPiece piece, View<const acc_t<T>> statistics_P3R, double scale,
                                  View<acc_t<T>> loss_R);

/// What `launch` runs on a GPU; shapes are checked already (vocab_cross_entropy.cu). A bad target counts for
/// nothing, and is an error once the stream is waited for.
namespace cuda {
template <class T>
void vocab_statistics(Stream& stream, View<const T> logits_Rv, View<const std::int32_t> targets_R,
                      VocabPiece piece, View<acc_t<T>> statistics_3R);
template <class A>
void vocab_losses(Stream& stream, View<const A> statistics_P3R, View<const std::int32_t> targets_R,
                  View<A> loss_R);
template <class T>
void vocab_cross_entropy_in_place(Stream& stream, View<T> logits_Rv, View<const std::int32_t> targets_R,
                                  VocabPiece piece, View<const acc_t<T>> statistics_P3R, double scale,
                                  View<acc_t<T>> loss_R);
}  // namespace cuda

}  // namespace ridge::kernels
