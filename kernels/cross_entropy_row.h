// What the CPU's cross entropies do with one row of logits.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/base/error.h"
#include "core/base/view.h"
#include "kernels/cross_entropy.h"
#include "kernels/element.h"
#include "kernels/vector_math.h"

namespace ridge::kernels {

inline constexpr std::int64_t kChunk = 4096;  // logits of one step of the online softmax: stays in L1
inline constexpr std::int64_t kElementsPerTask = 65536;

inline std::int64_t rows_per_task(std::int64_t vocabulary) {
  return std::max<std::int64_t>(1, kElementsPerTask / std::max<std::int64_t>(1, vocabulary));
}

template <class T>
acc_t<T> maximum(const T* x, std::int64_t n) {
  using A = acc_t<T>;
  A lane[kLanes];
  std::fill_n(lane, kLanes, -std::numeric_limits<A>::infinity());
  std::int64_t begin = 0;
  for (; begin + kLanes <= n; begin += kLanes) {
#pragma omp simd
    for (std::int64_t k = 0; k < kLanes; ++k)
      lane[k] = load(x[begin + k]) > lane[k] ? load(x[begin + k]) : lane[k];
  }
  for (std::int64_t k = 0; begin + k < n; ++k) lane[k] = std::max(lane[k], load(x[begin + k]));
  for (std::int64_t width = kLanes / 2; width > 0; width /= 2) {
    for (std::int64_t k = 0; k < width; ++k) lane[k] = std::max(lane[k], lane[k + width]);
  }
  return lane[0];
}

/// A sum of exponentials, relative to the greatest.
template <class A>
struct SumOfRow {
  A top = -std::numeric_limits<A>::infinity(), sum = 0;
};

/// In one pass over memory. NaN spreads: it never wins the maximum but enters the sum.
template <class T>
SumOfRow<acc_t<T>> sum_of_row(const T* x, std::int64_t n) {
  using A = acc_t<T>;
  SumOfRow<A> online;
  for (std::int64_t begin = 0; begin < n; begin += kChunk) {
    const std::int64_t count = std::min(kChunk, n - begin);
    const A chunk_top = maximum(x + begin, count);
    if (chunk_top > online.top) {
      online.sum *= std::exp(online.top - chunk_top);
      online.top = chunk_top;
    }
    const A shift = online.top == -std::numeric_limits<A>::infinity() ? A(0) : online.top;
    const T* row = x + begin;
    const auto term = [row, shift](std::int64_t i) { return vexp_of_negative(load(row[i]) - shift); };
    online.sum += sum_terms<A>(count, term, row + kChunk);
  }
  return online;
}

/// log(sum(exp(x)))
template <class T>
acc_t<T> log_sum_exp(const T* x, std::int64_t n) {
  const SumOfRow<acc_t<T>> online = sum_of_row(x, n);
  return online.top + std::log(online.sum);
}

/// dlogits = exp(logit - lse) * dloss
template <class T>
void softmax_gradient(const T* logits, acc_t<T> lse, acc_t<T> dloss, T* dlogits, std::int64_t n) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) store(dlogits[i], vexp(load(logits[i]) - lse) * dloss);
}

/// (softmax - onehot) * dloss; may be in place. A target outside of [0, n) is another piece's.
template <class T>
void gradient_row(const T* logits, std::int32_t target, acc_t<T> lse, acc_t<T> dloss, T* dlogits,
                  std::int64_t n) {
  if (target == kIgnoreIndex) {
    std::fill_n(dlogits, n, T(0));
    return;
  }
  const bool here = target >= 0 && target < n;
  const acc_t<T> at_target = here ? std::expm1(load(logits[target]) - lse) * dloss : acc_t<T>(0);
  softmax_gradient(logits, lse, dloss, dlogits, n);
  if (here) store(dlogits[target], at_target);
}

inline void check_targets(View<const std::int32_t> targets_R, std::int64_t vocabulary) {
  for (std::int64_t r = 0; r < targets_R.dim(0); ++r) {
    const std::int64_t id = targets_R(r);
    require(id == kIgnoreIndex || (id >= 0 && id < vocabulary),
            "cross entropy: target {} in row {} is outside the vocabulary of {} ids (only {} is ignored): "
            "check that tokenizer and model belong together",
            id, r, vocabulary, kIgnoreIndex);
  }
}

}  // namespace ridge::kernels
