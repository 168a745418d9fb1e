// Elementary functions without branches or calls, so that loops over them become vectors: f32 to a few ulp by
// minimax polynomials (Remez), f64 by the standard library. They follow IEEE at infinities and NaN.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

namespace ridge::kernels {

namespace detail {
inline constexpr float kRoundMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
inline constexpr float kLn2High = 0.693359375f;    // 9 bits, so that n * kLn2High is exact
inline constexpr float kLn2Low = -2.12194442e-4f;

/// e^r on [-ln(2)/2, ln(2)/2]
inline float exp_polynomial(float r) {
  float p = 1.39517197e-3f;
  p = p * r + 8.36959854e-3f;
  p = p * r + 4.16661873e-2f;
  p = p * r + 1.66665122e-1f;
  p = p * r + 5.0e-1f;
  return (p * r) * r + r + 1.0f;
}
}  // namespace detail

/// e^x, subnormal results included.
inline float vexp(float x) {
  const float clamped = x < -104.0f ? -104.0f : (x > 89.0f ? 89.0f : x);
  const float shifted = clamped * 1.44269504f + detail::kRoundMagic;
  const float n = shifted - detail::kRoundMagic;
  const float r = (clamped - n * detail::kLn2High) - n * detail::kLn2Low;
  const float p = detail::exp_polynomial(r);
  const auto k = static_cast<std::int32_t>(std::bit_cast<std::uint32_t>(shifted) - 0x4B400000u);
  const std::int32_t half = k >> 1;  // two factors: 2^128 and 2^-150 are no normal numbers
  const float low = std::bit_cast<float>(static_cast<std::uint32_t>(half + 127) << 23);
  const float high = std::bit_cast<float>(static_cast<std::uint32_t>(k - half + 127) << 23);
  return p * low * high;
}
inline double vexp(double x) { return std::exp(x); }

/// e^x for x <= 0 in fewer operations: what lies below e^-87 is e^-87. For sums whose greatest term is 1.
inline float vexp_of_negative(float x) {
  const float clamped = x < -87.0f ? -87.0f : x;
  const float shifted = clamped * 1.44269504f + detail::kRoundMagic;
  const float n = shifted - detail::kRoundMagic;
  const float r = (clamped - n * detail::kLn2High) - n * detail::kLn2Low;
  const float p = detail::exp_polynomial(r);
  const std::uint32_t exponent = (std::bit_cast<std::uint32_t>(shifted) + (127u - 0x4B400000u)) << 23;
  return p * std::bit_cast<float>(exponent);
}
inline double vexp_of_negative(double x) { return std::exp(x); }

/// Natural logarithm, subnormal arguments included; log(0) = -inf, NaN below 0.
inline float vlog(float x) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  const bool tiny = x < std::numeric_limits<float>::min();
  const float scaled = tiny ? x * 0x1p23f : x;
  const auto u = std::bit_cast<std::uint32_t>(scaled) - 0x3F3504F3u;  // sqrt(1/2): mantissa in [0.707, 1.414)
  const std::int32_t k = static_cast<std::int32_t>(u) >> 23;
  const float m = std::bit_cast<float>((u & 0x007FFFFFu) + 0x3F3504F3u);
  const float e = static_cast<float>(k) - (tiny ? 23.0f : 0.0f);
  const float f = m - 1.0f;
  float p = -7.85959810e-2f;
  p = p * f + 1.28816351e-1f;
  p = p * f - 1.31287530e-1f;
  p = p * f + 1.41811937e-1f;
  p = p * f - 1.66245550e-1f;
  p = p * f + 2.00022861e-1f;
  p = p * f - 2.50008106e-1f;
  p = p * f + 3.33333164e-1f;
  const float f2 = f * f;
  const float tail = f2 * f * p + e * detail::kLn2Low;
  const float y = (f + (tail - 0.5f * f2)) + e * detail::kLn2High;
  const float finite = x > 0.0f ? y : (x == 0.0f ? -kInf : std::numeric_limits<float>::quiet_NaN());
  return x == kInf ? kInf : finite;
}
inline double vlog(double x) { return std::log(x); }

/// 1 / (1 + e^-x)
inline float vsigmoid(float x) { return 1.0f / (1.0f + vexp(-x)); }
inline double vsigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }

inline float vtanh(float x) {
  const float a = std::fabs(x);
  const float z = x * x;
  float p = 2.12274608e-3f;
  p = p * z - 8.15628096e-3f;
  p = p * z + 2.16926076e-2f;
  p = p * z - 5.39453775e-2f;
  p = p * z + 1.33331954e-1f;
  p = p * z - 3.33333313e-1f;
  const float small = x + x * (z * p);
  const float large = 1.0f - 2.0f / (vexp(2.0f * a) + 1.0f);
  return a < 0.625f ? small : std::copysign(large, x);
}
inline double vtanh(double x) { return std::tanh(x); }

/// Error function.
inline float verf(float x) {
  const float a = std::fabs(x);
  const float z = x * x;
  float p = 8.36230902e-5f;
  p = p * z - 8.14148109e-4f;
  p = p * z + 5.20099001e-3f;
  p = p * z - 2.68594138e-2f;
  p = p * z + 1.12836964e-1f;
  p = p * z - 3.76126349e-1f;
  p = p * z + 1.28379166e-1f;
  const float small = x + x * p;
  const float t = a > 4.0f ? 4.0f : a;  // erf(4) rounds to 1; -log(erfc(t)) by a polynomial on [0.92, 4]
  float g = 2.11619081e-5f;
  g = g * t - 4.35218972e-4f;
  g = g * t + 4.17464366e-3f;
  g = g * t - 2.51286272e-2f;
  g = g * t + 1.08293951e-1f;
  g = g * t + 6.33334637e-1f;
  g = g * t + 1.12952077f;
  g = g * t - 1.75875102e-4f;
  const float large = 1.0f - vexp(-g);
  return a > 0.925f ? std::copysign(large, x) : small;
}
inline double verf(double x) { return std::erf(x); }

struct SinCos {
  float sin;
  float cos;
};

/// Sine and cosine of 2*pi*turns, for turns in [0, 1].
inline SinCos vsincos_turns(float turns) {
  const float q = (4.0f * turns + detail::kRoundMagic) - detail::kRoundMagic;
  const float r = 4.0f * turns - q;  // quarter turns in [-0.5, 0.5], exact
  const float z = r * r;
  float s = -4.60217707e-3f;
  s = s * z + 7.96802267e-2f;
  s = s * z - 6.45963490e-1f;
  s = (s * z + 1.57079637f) * r;
  float c = 9.03631735e-4f;
  c = c * z - 2.08600722e-2f;
  c = c * z + 2.53669202e-1f;
  c = c * z - 1.23370051f;
  c = c * z + 1.0f;
  const auto quadrant = static_cast<std::int32_t>(q) & 3;
  const float sine = (quadrant & 1) != 0 ? c : s;
  const float cosine = (quadrant & 1) != 0 ? s : c;
  return {(quadrant & 2) != 0 ? -sine : sine, ((quadrant + 1) & 2) != 0 ? -cosine : cosine};
}

}  // namespace ridge::kernels
