// Codes of the weight formats and the values that they stand for. constexpr: nvcc compiles these functions
// for the GPU too. No multiplication here meets an addition, so contraction to FMA cannot change a bit.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <utility>

#include "kernels/formats/format.h"

namespace ridge::kernels {

inline constexpr float kGreatestFloat = std::numeric_limits<float>::max();

/// NF4's values (Dettmers et al., 2023; bitsandbytes).
constexpr std::array<float, 16> nf4_values() {
  return {-1.0f,
          -0.6961928009986877f,
          -0.5250730514526367f,
          -0.39491748809814453f,
          -0.28444138169288635f,
          -0.18477343022823334f,
          -0.09105003625154495f,
          0.0f,
          0.07958029955625534f,
          0.16093020141124725f,
          0.24611230194568634f,
          0.33791524171829224f,
          0.44070982933044434f,
          0.5626170039176941f,
          0.7229568362236023f,
          1.0f};
}
/// Between neighbours; a value that is equal to one stays below.
constexpr std::array<float, 15> nf4_thresholds() {
  return {-0.8480964004993439f,  -0.6106329262256622f,  -0.4599952697753906f,   -0.33967943489551544f,
          -0.23460740596055984f, -0.13791173323988914f, -0.045525018125772476f, 0.03979014977812767f,
          0.1202552504837513f,   0.2035212516784668f,   0.2920137718319893f,    0.3893125355243683f,
          0.5016634166240692f,   0.6427869200706482f,   0.8614784181118011f};
}

/// FP4's, by bit pattern: bit 3 is the sign, and magnitudes do not rise with the code.
constexpr std::array<float, 16> fp4_values() {
  return {0.0f,  0.005208333333f,  0.66666667f,  1.0f,  0.33333333f,  0.5f,  0.16666667f,  0.25f,
          -0.0f, -0.005208333333f, -0.66666667f, -1.0f, -0.33333333f, -0.5f, -0.16666667f, -0.25f};
}
/// Between neighbours by magnitude.
constexpr std::array<float, 7> fp4_thresholds() {
  return {0.00260417f, 0.0859375f, 0.20833333f, 0.29166667f, 0.4166667f, 0.583333f, 0.8333333f};
}

namespace detail {
template <std::size_t N, std::size_t... I>
constexpr std::uint32_t count_below(float x, const std::array<float, N>& t, std::index_sequence<I...>) {
  return ((x > t[I] ? 1u : 0u) + ... + 0u);
}
}  // namespace detail

/// How many of `thresholds` are below x; NaN: none.
template <std::size_t N>
constexpr std::uint32_t count_below(float x, const std::array<float, N>& thresholds) {
  return detail::count_below(x, thresholds, std::make_index_sequence<N>());
}

constexpr std::uint32_t nf4_code(float x) { return count_below(x, nf4_thresholds()); }

constexpr std::uint32_t fp4_code(float x) {
  const std::uint32_t order = count_below(x < 0 ? -x : x, fp4_thresholds());
  return (order ^ ((order & 2u) << 1)) | (x < 0 ? 8u : 0u);  // by magnitude: 0 1 6 7 4 5 2 3
}

/// Between two neighbours of a map.
constexpr float map_threshold(float low, float high) { return (low + high) * 0.5f; }

namespace detail {
template <std::uint32_t... I>
constexpr std::uint32_t search(const float* t, float x, std::integer_sequence<std::uint32_t, I...>) {
  std::uint32_t code = 0;
  ((code += x > t[code + (128u >> I) - 1] ? 128u >> I : 0u), ...);
  return code;
}
}  // namespace detail

/// The code of the nearest of a map's 256 rising values, from the 255 thresholds between them; of two as
/// near, the lower.
constexpr std::uint32_t nearest_in_map(const float* thresholds, float x) {
  return detail::search(thresholds, x, std::make_integer_sequence<std::uint32_t, 8>());
}

/// What elements of a block are multiplied by: 1 / absmax, as bitsandbytes' kernels do. Finite, so that a
/// block of zeros has codes of zero.
constexpr float inverse_of(float absmax) {
  const float inverse = 1.0f / absmax;
  return inverse < kGreatestFloat ? inverse : kGreatestFloat;
}

/// Rounds to nearest even what lies within [low, high], at most 2^21 away from 0; NaN is `low`.
constexpr std::int32_t rounded_within(float x, float low, float high) {
  const float above = x > low ? x : low;
  const float within = above < high ? above : high;
  return static_cast<std::int32_t>(std::bit_cast<std::uint32_t>(within + 12582912.0f) - 0x4B400000u);
}

constexpr std::uint32_t int8_code(float x) {
  return static_cast<std::uint32_t>(rounded_within(x, -128.0f, 127.0f)) & 0xFFu;
}
/// `zero`: the zero point less 8, a whole number; 0 where there is none.
constexpr std::uint32_t int4_code(float x, float zero) {
  return static_cast<std::uint32_t>(rounded_within(x + zero, -8.0f, 7.0f) + 8);
}
/// From the least element of a group, at most 0: 0 .. 15.
constexpr std::uint32_t int4_zero(float least, float scale) { return int4_code(-8.0f - least / scale, 0.0f); }

/// e4m3fn: rounds to nearest even, saturates at 448; NaN is 0x7F.
constexpr std::uint32_t fp8_code(float x) {
  const auto u = std::bit_cast<std::uint32_t>(x);
  const std::uint32_t magnitude = u & 0x7FFFFFFFu;
  const std::uint32_t m = magnitude < 0x43E00000u ? magnitude : 0x43E00000u;  // 448
  const std::uint32_t normal = ((m + 0x7FFFFu + ((m >> 20) & 1u)) >> 20) - (120u << 3);
  const float shifted = std::bit_cast<float>(m) + 16384.0f;  // adds in units of 2^-9, the subnormals' step
  const std::uint32_t subnormal = std::bit_cast<std::uint32_t>(shifted) - 0x46800000u;
  const std::uint32_t code = (m < 0x3C800000u ? subnormal : normal) | ((u >> 24) & 0x80u);
  return magnitude > 0x7F800000u ? 0x7Fu : code;
}
constexpr float fp8_value(std::uint32_t code) {
  const std::uint32_t m = code & 0x7Fu;
  const float subnormal = static_cast<float>(static_cast<std::int32_t>(m)) * 0x1p-9f;
  const float normal = std::bit_cast<float>((m << 20) + (120u << 23));
  const float value = m < 8u ? subnormal : (m == 0x7Fu ? std::numeric_limits<float>::quiet_NaN() : normal);
  return std::bit_cast<float>(std::bit_cast<std::uint32_t>(value) | ((code & 0x80u) << 24));
}
constexpr float int8_value(std::uint32_t code) {
  return static_cast<float>(static_cast<std::int8_t>(static_cast<std::uint8_t>(code)));
}

/// The greatest magnitude is found in integers, where any order gives the same bits and NaN beats infinity.
constexpr std::uint32_t magnitude_bits(float x) { return std::bit_cast<std::uint32_t>(x) & 0x7FFFFFFFu; }

/// absmax / divisor, or 1 where that is 0.
constexpr float scale_of(std::uint32_t absmax_bits, float divisor) {
  const float scale = std::bit_cast<float>(absmax_bits) / divisor;
  return scale == 0 ? 1.0f : scale;
}
inline constexpr float kInt8Divisor = 127.5f, kInt4Divisor = 7.5f, kFp8Divisor = 448.0f;

/// int4's with zero points, of a group with elements in [least, greatest], 0 among them.
constexpr float asymmetric_scale(std::uint32_t absmax_bits, float least, float greatest) {
  const float scale =
      absmax_bits < 0x7F800000u ? (greatest - least) / 15.0f : std::bit_cast<float>(absmax_bits);
  return scale == 0 ? 1.0f : scale;
}
/// An int4 scale as it is kept: f32, or rounded to bf16 (to nearest even).
constexpr float kept_scale(float scale, bool as_bf16) {
  const auto u = std::bit_cast<std::uint32_t>(scale);
  const std::uint32_t rounded = (u + 0x7FFFu + ((u >> 16) & 1u)) & 0xFFFF0000u;
  const float narrow = scale != scale ? scale : std::bit_cast<float>(rounded);
  return !as_bf16 ? scale : (narrow == 0 ? 1.0f : narrow);
}

}  // namespace ridge::kernels
