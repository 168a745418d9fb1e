// Products of small matrices with the result in vector registers: C[m, n] (+)= A[m, k] B[k, n] for operands
// that lie in the first caches. B and C have dense rows in whole vectors; A is read one element at a time, so
// it may lie either way round.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "core/base/dtype.h"

namespace ridge::kernels {

#if defined(__AVX512F__)
inline constexpr std::int64_t kVectorBytes = 64, kTileRows = 8;
#elif defined(__AVX__)
inline constexpr std::int64_t kVectorBytes = 32, kTileRows = 4;
#else
inline constexpr std::int64_t kVectorBytes = 16, kTileRows = 2;
#endif

/// Elements of one vector register.
template <class A>
inline constexpr std::int64_t kTileLanes = kVectorBytes / static_cast<std::int64_t>(sizeof(A));
static_assert(kTileLanes<double> % kTileRows == 0);  // whole vectors are whole tiles
/// Columns of the widest tile: 3 vectors, so that 24 sums, 3 of B's and a splat fit 32 registers.
template <class A>
inline constexpr std::int64_t kPanel = 3 * kTileLanes<A>;

template <class A>
struct VectorOf {
  typedef A type __attribute__((vector_size(kVectorBytes)));
};

namespace detail {

typedef std::uint16_t Halfwords __attribute__((vector_size(kVectorBytes / 2)));

// A vector from memory of any alignment; one move.
template <class V>
inline V load_any(const void* from) {
  V value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

template <class V>
inline void store_any(void* to, const V& value) {
  std::memcpy(to, &value, sizeof value);
}

// Each 16-bit lane below it a zero: bf16 becomes f32 in one shuffle.
template <int... I>
inline typename VectorOf<float>::type widen(Halfwords x, std::integer_sequence<int, I...>) {
  constexpr int kZero = sizeof...(I) / 2;
  return std::bit_cast<typename VectorOf<float>::type>(
      __builtin_shufflevector(x, Halfwords{}, (I % 2 == 1 ? I / 2 : kZero)...));
}

template <class V, int... I>
inline auto add_halves(V x, std::integer_sequence<int, I...>) {
  constexpr int kHalf = sizeof...(I);
  return __builtin_shufflevector(x, x, I...) + __builtin_shufflevector(x, x, (kHalf + I)...);
}

}  // namespace detail

/// One vector of elements widened to the accumulation type.
template <class T>
inline typename VectorOf<acc_t<T>>::type load_vector(const T* from) {
  if constexpr (std::is_same_v<T, bf16>) {
    return detail::widen(detail::load_any<detail::Halfwords>(from),
                         std::make_integer_sequence<int, kVectorBytes / 2>());
  } else {
    return detail::load_any<typename VectorOf<T>::type>(from);
  }
}

/// The sum of a vector's lanes, halves added to halves.
template <class A, int kCount = static_cast<int>(kTileLanes<A>), class V>
inline A sum_lanes(V x) {
  if constexpr (kCount == 2) {
    return x[0] + x[1];
  } else {
    return sum_lanes<A, kCount / 2>(detail::add_halves(x, std::make_integer_sequence<int, kCount / 2>()));
  }
}

namespace detail {

template <class V>
inline auto to_four_lanes(V x) {
  constexpr int kCount = static_cast<int>(sizeof(V) / sizeof(x[0]));
  if constexpr (kCount == 4) {
    return x;
  } else {
    return to_four_lanes(add_halves(x, std::make_integer_sequence<int, kCount / 2>()));
  }
}

}  // namespace detail

/// sums[i] = the sum of the lanes of x[i], for four vectors of at least four lanes.
template <class A, class V>
inline void sum_lanes_of_four(const V* x, A* sums) {
  const auto a = detail::to_four_lanes(x[0]), b = detail::to_four_lanes(x[1]);
  const auto c = detail::to_four_lanes(x[2]), d = detail::to_four_lanes(x[3]);
  const auto ab = __builtin_shufflevector(a, b, 0, 4, 2, 6) + __builtin_shufflevector(a, b, 1, 5, 3, 7);
  const auto cd = __builtin_shufflevector(c, d, 0, 4, 2, 6) + __builtin_shufflevector(c, d, 1, 5, 3, 7);
  const auto all = __builtin_shufflevector(ab, cd, 0, 1, 4, 5) + __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
  for (int i = 0; i < 4; ++i) sums[i] = all[i];
}

inline constexpr std::int64_t round_up(std::int64_t n, std::int64_t step) {
  return (n + step - 1) / step * step;
}

/// How A lies: element (i, k) at a[i * stride + k] or, transposed, at a[k * stride + i].
enum class Lies : std::uint8_t { by_rows, by_columns };

/// kTileRows rows of C by kVectors vectors.
template <class A, int kVectors, Lies kLies>
inline void register_tile(std::int64_t k, const A* a, std::int64_t a_stride, const A* b,
                          std::int64_t b_stride, A* c, std::int64_t c_stride, bool add) {
  using V = typename VectorOf<A>::type;
  constexpr std::int64_t kWidth = kTileLanes<A>;
  const std::int64_t row_step = kLies == Lies::by_rows ? a_stride : 1;
  const std::int64_t k_step = kLies == Lies::by_rows ? 1 : a_stride;
  V sums[kTileRows][kVectors] = {};
  for (std::int64_t kk = 0; kk < k; ++kk) {
    V row[kVectors];
#pragma GCC unroll 3
    for (int v = 0; v < kVectors; ++v) row[v] = detail::load_any<V>(b + kk * b_stride + v * kWidth);
#pragma GCC unroll 8
    for (int r = 0; r < kTileRows; ++r) {
      const A scalar = a[r * row_step + kk * k_step];
#pragma GCC unroll 3
      for (int v = 0; v < kVectors; ++v) sums[r][v] += scalar * row[v];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 3
    for (int v = 0; v < kVectors; ++v) {
      A* target = c + r * c_stride + v * kWidth;
      detail::store_any(target, add ? detail::load_any<V>(target) + sums[r][v] : sums[r][v]);
    }
  }
}

/// m a multiple of kTileRows, n = kVectors * kTileLanes<A>.
template <class A, int kVectors, Lies kLies>
inline void panel_product(std::int64_t m, std::int64_t k, const A* a, std::int64_t a_stride, const A* b,
                          std::int64_t b_stride, A* c, std::int64_t c_stride, bool add) {
  const std::int64_t row_step = kLies == Lies::by_rows ? a_stride : 1;
  for (std::int64_t i = 0; i < m; i += kTileRows) {
    register_tile<A, kVectors, kLies>(k, a + i * row_step, a_stride, b, b_stride, c + i * c_stride, c_stride,
                                      add);
  }
}

/// m a multiple of kTileRows, n any multiple of kTileLanes<A>: cut into panels of nearly equal width.
template <class A, Lies kLies>
inline void wide_product(std::int64_t m, std::int64_t n, std::int64_t k, const A* a, std::int64_t a_stride,
                         const A* b, std::int64_t b_stride, A* c, std::int64_t c_stride, bool add) {
  std::int64_t vectors = n / kTileLanes<A>;
  while (vectors > 0) {
    const std::int64_t panels = (vectors + 2) / 3, width = (vectors + panels - 1) / panels;
    if (width == 3) panel_product<A, 3, kLies>(m, k, a, a_stride, b, b_stride, c, c_stride, add);
    if (width == 2) panel_product<A, 2, kLies>(m, k, a, a_stride, b, b_stride, c, c_stride, add);
    if (width == 1) panel_product<A, 1, kLies>(m, k, a, a_stride, b, b_stride, c, c_stride, add);
    b += width * kTileLanes<A>;
    c += width * kTileLanes<A>;
    vectors -= width;
  }
}

namespace detail {

// The lanes of x and y in turn: the first halves, or the second ones.
template <int kHalf, class V, int... I>
inline V interleave(V x, V y, std::integer_sequence<int, I...>) {
  constexpr int kCount = sizeof...(I);
  return __builtin_shufflevector(x, y, ((I % 2) * kCount + kHalf * kCount / 2 + I / 2)...);
}

}  // namespace detail

/// to[columns, rows] = from[rows, columns], both dense; rows and columns are multiples of kTileLanes<A>.
template <class A>
inline void turn(const A* from, std::int64_t rows, std::int64_t columns, A* to) {
  using V = typename VectorOf<A>::type;
  constexpr int kCount = static_cast<int>(kTileLanes<A>);
  constexpr auto kIndex = std::make_integer_sequence<int, kCount>();
  for (std::int64_t r = 0; r < rows; r += kCount) {
    for (std::int64_t c = 0; c < columns; c += kCount) {
      V x[kCount], y[kCount];
      for (int i = 0; i < kCount; ++i) x[i] = detail::load_any<V>(from + (r + i) * columns + c);
#pragma GCC unroll 4
      for (int round = 1; round < kCount; round *= 2) {  // each interleaving moves one bit of the row number
        for (int i = 0; i < kCount / 2; ++i) {
          y[2 * i] = detail::interleave<0>(x[i], x[i + kCount / 2], kIndex);
          y[2 * i + 1] = detail::interleave<1>(x[i], x[i + kCount / 2], kIndex);
        }
        for (int i = 0; i < kCount; ++i) x[i] = y[i];
      }
      for (int i = 0; i < kCount; ++i) detail::store_any(to + (c + i) * rows + r, x[i]);
    }
  }
}

}  // namespace ridge::kernels
