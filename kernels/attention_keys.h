// A few query rows against keys and values that lie in memory: dot products and sums along the head dim, in
// vectors. T: the type of their elements, with load_vector and load.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "kernels/attention_problem.h"
#include "kernels/element.h"
#include "kernels/register_tile.h"
#include "kernels/vector_math.h"

namespace ridge::kernels::attention_detail {

inline constexpr std::int64_t kKeys = 64;   // keys a tile
inline constexpr int kTogether = 4;         // keys, and rows, that are worked on at once
inline constexpr std::int64_t kAhead = 16;  // keys from the prefetched one to the one in work

template <class A>
inline constexpr A kNothing = -std::numeric_limits<A>::infinity();

// scores[r, i] = q[r] . key[i]
template <int kRows, int kCount, class T>
inline void score_keys(const T* const* key, std::int64_t head_dim, const acc_t<T>* q, std::int64_t width,
                       acc_t<T>* scores) {
  using A = acc_t<T>;
  using V = typename VectorOf<A>::type;
  V sums[kRows][kCount] = {};
  std::int64_t d = 0;
  for (; d + kTileLanes<A> <= head_dim; d += kTileLanes<A>) {
    for (int i = 0; i < kCount; ++i) {
      const V part = load_vector(key[i] + d);
      for (int r = 0; r < kRows; ++r) sums[r][i] += part * load_vector(q + r * width + d);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
    if constexpr (kCount == 4 && kTileLanes<A> >= 4) {
      sum_lanes_of_four(sums[r], scores + r * kKeys);
    } else {
      for (int i = 0; i < kCount; ++i) scores[r * kKeys + i] = sum_lanes<A>(sums[r][i]);
    }
  }
  for (std::int64_t e = d; e < head_dim; ++e) {
    for (int i = 0; i < kCount; ++i) {
      for (int r = 0; r < kRows; ++r) scores[r * kKeys + i] += load(key[i][e]) * q[r * width + e];
    }
  }
}

// out[r] += sum over i of weights[r, i] value[i]
template <int kRows, int kCount, class T>
inline void mix_values(const T* const* value, std::int64_t head_dim, const acc_t<T>* __restrict weights,
                       std::int64_t width, acc_t<T>* __restrict out) {
  using A = acc_t<T>;
  using V = typename VectorOf<A>::type;
  V weight[kRows][kCount];
  for (int r = 0; r < kRows; ++r) {
    for (int i = 0; i < kCount; ++i) weight[r][i] = V{} + weights[r * kKeys + i];
  }
  std::int64_t d = 0;
  for (; d + kTileLanes<A> <= head_dim; d += kTileLanes<A>) {
    V part[kCount];
    for (int i = 0; i < kCount; ++i) part[i] = load_vector(value[i] + d);
    for (int r = 0; r < kRows; ++r) {
      A* to = out + r * width + d;
      V sum = detail::load_any<V>(to);
      for (int i = 0; i < kCount; ++i) sum += weight[r][i] * part[i];
      detail::store_any(to, sum);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int i = 0; i < kCount; ++i) {
      for (std::int64_t e = d; e < head_dim; ++e)
        out[r * width + e] += weights[r * kKeys + i] * load(value[i][e]);
    }
  }
}

// Hides keys that a row does not see, and turns its scores into exp(score - max); rescales what it had.
template <class A>
inline void soften(KeyRange seen, std::int64_t begin, std::int64_t n, std::int64_t width,
                   A* __restrict scores, A* out, A& max, A& sum) {
  for (std::int64_t j = 0; j < std::min(n, seen.begin - begin); ++j) scores[j] = kNothing<A>;
  for (std::int64_t j = std::max<std::int64_t>(0, seen.end - begin); j < n; ++j) scores[j] = kNothing<A>;
  A peak = max;
#pragma omp simd reduction(max : peak)
  for (std::int64_t j = 0; j < n; ++j) peak = scores[j] > peak ? scores[j] : peak;
  const A base = peak == kNothing<A> ? A(0) : peak, keep = vexp(max - base);
  A total = 0;
#pragma omp simd reduction(+ : total)
  for (std::int64_t j = 0; j < n; ++j) {
    scores[j] = vexp(scores[j] - base);
    total += scores[j];
  }
  if (peak != max) {
    for (std::int64_t d = 0; d < width; ++d) out[d] *= keep;
  }
  sum = sum * keep + total;
  max = peak;
}

template <class T>
inline void prefetch_row(const T* row, std::int64_t head_dim) {
  const char* bytes = reinterpret_cast<const char*>(row);
  for (std::int64_t at = 0; at < head_dim * static_cast<std::int64_t>(sizeof(T)); at += 64) {
    __builtin_prefetch(bytes + at);
  }
}

}  // namespace ridge::kernels::attention_detail
