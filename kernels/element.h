// Loads and stores of one element in the accumulation type, in the form that GCC turns into vectors.
#pragma once

#include <bit>
#include <cstdint>

#include "core/base/dtype.h"

namespace ridge::kernels {

template <class T>
inline acc_t<T> load(const T& x) {
  return static_cast<acc_t<T>>(x);
}

inline void store(float& slot, float value) { slot = value; }
inline void store(double& slot, double value) { slot = value; }
inline void store(bf16& slot, float value) { slot.bits = bf16(value).bits; }  // a struct copy stays scalar

/// `value` rounded to T, still in the accumulation type.
template <class T>
inline acc_t<T> round_to(acc_t<T> value) {
  return value;
}
/// As float(bf16(value)), without leaving 32-bit lanes.
template <>
inline float round_to<bf16>(float value) {
  const auto u = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t rounded = (u + 0x7FFFu + ((u >> 16) & 1u)) & 0xFFFF0000u;
  return value != value ? value : std::bit_cast<float>(rounded);
}

inline constexpr std::int64_t kLanes = 64;  // elements of one step of the loops below

/// Asks for the next step's worth of elements from `next` on; any address will do.
template <class T>
inline void fetch_lanes(const T* next) {
  constexpr std::int64_t kLine = 64 / sizeof(T);
  for (std::int64_t k = 0; k < kLanes; k += kLine) __builtin_prefetch(next + k);
}

/// Sum of term(i) for i in [0, n), in 64 lanes that a tree joins: one vector would wait for each addition.
/// Meanwhile fetches n elements from each of `next`, which will be read soon: memory works while we compute.
template <class A, class Term, class... T>
A sum_terms(std::int64_t n, Term term, const T*... next) {
  A lane[kLanes] = {};
  std::int64_t begin = 0;
  for (; begin + kLanes <= n; begin += kLanes) {
    (fetch_lanes(next + begin), ...);
#pragma omp simd
    for (std::int64_t k = 0; k < kLanes; ++k) lane[k] += term(begin + k);
  }
  for (std::int64_t k = 0; begin + k < n; ++k) lane[k] += term(begin + k);
  for (std::int64_t width = kLanes / 2; width > 0; width /= 2) {
    for (std::int64_t k = 0; k < width; ++k) lane[k] += lane[k + width];
  }
  return lane[0];
}

/// Calls op(i) for i in [0, n), independent of each other, and fetches ahead as sum_terms does.
template <class Op, class... T>
void each_element(std::int64_t n, Op op, const T*... next) {
  std::int64_t begin = 0;
  for (; begin + kLanes <= n; begin += kLanes) {
    (fetch_lanes(next + begin), ...);
#pragma omp simd
    for (std::int64_t k = 0; k < kLanes; ++k) op(begin + k);
  }
  for (; begin < n; ++begin) op(begin);
}

/// f16::decode without branches.
inline float decode_f16(std::uint16_t bits) {
  const std::uint32_t magnitude = static_cast<std::uint32_t>(bits & 0x7FFFu) << 13;
  const auto finite = std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) * 0x1p112f);  // exact
  const std::uint32_t wide = (bits & 0x7C00u) == 0x7C00u ? magnitude | 0x7F800000u : finite;
  return std::bit_cast<float>(wide | static_cast<std::uint32_t>(bits & 0x8000u) << 16);
}

/// f16::encode without branches: rounds to nearest even.
inline std::uint16_t encode_f16(float value) {
  const auto u = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t m = u & 0x7FFFFFFFu;
  const std::uint32_t normal = (m + 0xFFFu + ((m >> 13) & 1u) - 0x38000000u) >> 13;
  const float half_up = std::bit_cast<float>(m) + 0.5f;  // adds in units of 2^-24, the subnormals' step
  const std::uint32_t subnormal = std::bit_cast<std::uint32_t>(half_up) - 0x3F000000u;
  std::uint32_t bits = m < 0x38800000u ? subnormal : normal;
  bits = m >= 0x477FF000u ? 0x7C00u : bits;  // 65520 and above
  bits = m > 0x7F800000u ? 0x7E00u : bits;
  return static_cast<std::uint16_t>(bits | ((u >> 16) & 0x8000u));
}

}  // namespace ridge::kernels
