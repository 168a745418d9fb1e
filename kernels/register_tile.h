// Products of small matrices with the result in vector registers: C[m, n] (+)= A[m, k] B[k, n] for operands
// that lie in the first caches. B and C have dense rows in whole vectors; A is read one element at a time, so
// it may lie either way round.
#pragma once

#include <cstdint>
#include <cstring>

namespace ridge::kernels {

#if defined(__AVX512F__)
inline constexpr std::int64_t kVectorBytes = 64, kTileRows = 8;
#elif defined(__AVX__)
inline constexpr std::int64_t kVectorBytes = 32, kTileRows = 4;
#else
inline constexpr std::int64_t kVectorBytes = 16, kTileRows = 4;
#endif

/// Elements of one vector register.
template <class A>
inline constexpr std::int64_t kLanes = kVectorBytes / static_cast<std::int64_t>(sizeof(A));
/// Columns of the widest tile: 3 vectors, so that 24 sums, 3 of B's and a splat fit 32 registers.
template <class A>
inline constexpr std::int64_t kPanel = 3 * kLanes<A>;

template <class A>
struct VectorOf {
  typedef A type __attribute__((vector_size(kVectorBytes), aligned(alignof(A)), may_alias));
};

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
  constexpr std::int64_t kWidth = kLanes<A>;
  const std::int64_t row_step = kLies == Lies::by_rows ? a_stride : 1;
  const std::int64_t k_step = kLies == Lies::by_rows ? 1 : a_stride;
  V sums[kTileRows][kVectors] = {};
  for (std::int64_t kk = 0; kk < k; ++kk) {
    V row[kVectors];
#pragma GCC unroll 3
    for (int v = 0; v < kVectors; ++v) row[v] = *reinterpret_cast<const V*>(b + kk * b_stride + v * kWidth);
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
      V& target = *reinterpret_cast<V*>(c + r * c_stride + v * kWidth);
      target = add ? target + sums[r][v] : sums[r][v];
    }
  }
}

/// m a multiple of kTileRows, n = kVectors * kLanes<A>.
template <class A, int kVectors, Lies kLies>
inline void panel_product(std::int64_t m, std::int64_t k, const A* a, std::int64_t a_stride, const A* b,
                          std::int64_t b_stride, A* c, std::int64_t c_stride, bool add) {
  const std::int64_t row_step = kLies == Lies::by_rows ? a_stride : 1;
  for (std::int64_t i = 0; i < m; i += kTileRows) {
    register_tile<A, kVectors, kLies>(k, a + i * row_step, a_stride, b, b_stride, c + i * c_stride, c_stride,
                                      add);
  }
}

/// m a multiple of kTileRows, n any multiple of kLanes<A>: cut into panels of nearly equal width.
template <class A, Lies kLies>
inline void wide_product(std::int64_t m, std::int64_t n, std::int64_t k, const A* a, std::int64_t a_stride,
                         const A* b, std::int64_t b_stride, A* c, std::int64_t c_stride, bool add) {
  std::int64_t vectors = n / kLanes<A>;
  while (vectors > 0) {
    const std::int64_t panels = (vectors + 2) / 3, width = (vectors + panels - 1) / panels;
    if (width == 3) panel_product<A, 3, kLies>(m, k, a, a_stride, b, b_stride, c, c_stride, add);
    if (width == 2) panel_product<A, 2, kLies>(m, k, a, a_stride, b, b_stride, c, c_stride, add);
    if (width == 1) panel_product<A, 1, kLies>(m, k, a, a_stride, b, b_stride, c, c_stride, add);
    b += width * kLanes<A>;
    c += width * kLanes<A>;
    vectors -= width;
  }
}

}  // namespace ridge::kernels
