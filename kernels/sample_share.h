// What choosing an id is made of, the same bits on every device: shares of probability are whole numbers,
// whose sums do not depend on the order.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "kernels/sample.h"

namespace ridge::kernels::sample_detail {

inline constexpr std::uint64_t kPhiloxStream = 0x73616D706C65ull;  // of inference/sampling.h
inline constexpr int kShareBits = 43;                              // the most likely id's share is 2^43
inline constexpr double kWhole = 8796093022208.0;

/// Whether there is no order or share with this logit among others.
constexpr bool is_bad(float logit) { return !(logit < std::numeric_limits<float>::infinity()); }

constexpr bool is_seen(std::uint32_t word, std::int64_t id) {
  return (word >> (static_cast<std::uint32_t>(id) % 32u) & 1u) != 0;
}
constexpr float penalised(float logit, float penalty) {
  return logit > 0 ? logit / penalty : logit * penalty;
}

/// Rises as the logit falls; equal for equal logits.
constexpr std::uint32_t key_of(float logit) {
  const auto u = std::bit_cast<std::uint32_t>(logit == 0 ? 0.0f : logit);
  return (u & 0x80000000u) != 0 ? u : ~(u | 0x80000000u);
}
constexpr float logit_of(std::uint32_t key) {
  return std::bit_cast<float>((key & 0x80000000u) != 0 ? key : ~key & 0x7FFFFFFFu);
}

/// 2^43 e^((logit - top) / temperature), rounded: exp by Taylor's series in a fixed order of fused
/// operations.
constexpr std::uint64_t share_of(float logit, float top, double temperature) {
  const double x = (static_cast<double>(logit) - static_cast<double>(top)) / temperature;
  if (!(x > -31)) return 0;                      // below a half
  constexpr double kMagic = 6755399441055744.0;  // 1.5 * 2^52: adding it rounds to an integer
  const double n = std::fma(x, 1.4426950408889634, kMagic) - kMagic;
  const double r = std::fma(n, -1.9082149292705877e-10, std::fma(n, -0.6931471803691238, x));
  constexpr double kInverse[] = {1,
                                 1,
                                 1.0 / 2,
                                 1.0 / 6,
                                 1.0 / 24,
                                 1.0 / 120,
                                 1.0 / 720,
                                 1.0 / 5040,
                                 1.0 / 40320,
                                 1.0 / 362880,
                                 1.0 / 3628800,
                                 1.0 / 39916800,
                                 1.0 / 479001600,
                                 1.0 / 6227020800};  // 1 / i!
  double p = kInverse[13];
  for (int i = 12; i >= 0; --i) p = std::fma(p, r, kInverse[i]);
  const auto exponent = static_cast<std::uint64_t>(static_cast<std::int64_t>(n) + kShareBits + 1023);
  return static_cast<std::uint64_t>(p * std::bit_cast<double>(exponent << 52) + 0.5);  // the product is exact
}

/// The sum that the most likely ids must reach to have the part `top_p` of `total`.
constexpr std::uint64_t wanted_of(std::uint64_t total, float top_p) {
  if (!(top_p < 1)) return total;
  const double wanted = static_cast<double>(top_p) * static_cast<double>(total);
  const auto floor = static_cast<std::uint64_t>(wanted);
  const std::uint64_t up = static_cast<double>(floor) < wanted ? floor + 1 : floor;
  return up < 1 ? 1 : (up < total ? up : total);
}
constexpr bool is_likely(std::uint64_t share, float min_p) {
  return static_cast<double>(share) >= static_cast<double>(min_p) * kWhole;
}

/// floor(mass * words / 2^64): the first id whose sum with those before exceeds it is drawn.
constexpr std::uint64_t drawn_of(std::uint64_t mass, std::uint32_t high, std::uint32_t low) {
  const std::uint64_t m1 = mass >> 32, m0 = mass & 0xFFFFFFFFu;
  const std::uint64_t middle = m1 * low + (m0 * low >> 32), cross = m0 * high + (middle & 0xFFFFFFFFu);
  return m1 * high + (middle >> 32) + (cross >> 32);
}

}  // namespace ridge::kernels::sample_detail
