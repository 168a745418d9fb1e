// Codes as pairs of bf16 by integer arithmetic: constexpr, so that nvcc compiles it for the GPU and a test
// checks every code on the CPU. `Ops` names what a GPU has instructions for.
#pragma once

#include <cstdint>

namespace ridge::kernels {

/// Eight weights; the first of a pair is its low half.
struct Eight {
  std::uint32_t pair[4];
};

/// Which columns the halves are, from low to high: as stored, halves of a word apart (0 4, 1 5, 2 6, 3 7), or
/// of bytes every other one (0 2, 1 3, 4 6, 5 7).
enum class PairOrder { plain, word, bytes };
constexpr int column_of(PairOrder order, int half) {
  if (order == PairOrder::word) return half / 2 + half % 2 * 4;
  if (order == PairOrder::bytes) return half / 4 * 4 + half % 4 / 2 + half % 2 * 2;
  return half;
}

inline constexpr float kInt4Bias = 128;  // of what int4_eight makes

/// q + kInt4Bias of the eight codes q of a word, the first in the lowest bits, in word order: 0x4300 is 128
/// in bf16, and its last 4 bits count ones.
template <class Ops>
constexpr Eight int4_eight(std::uint32_t word) {
  Eight out{};
  for (std::uint32_t j = 0; j < 4; ++j) out.pair[j] = Ops::select(word >> 4 * j, 0x000F000Fu, 0x43004300u);
  return out;
}

/// The four int8 of a word, in bytes order, as pairs j and j + 1 of `out`: (128 + the low 7 bits) less 128,
/// or less 256 where the sign is set.
template <class Ops>
constexpr void int8_four(std::uint32_t word, Eight& out, std::uint32_t j) {
  for (std::uint32_t i = 0; i < 2; ++i) {
    const std::uint32_t low = Ops::select(word >> 8 * i, 0x007F007Fu, 0x43004300u);
    out.pair[j + i] = Ops::subtract(low, Ops::select(word >> 8 * i, 0x00800080u, 0x43004300u));
  }
}

/// The four e4m3 of a word, in bytes order: exponent and mantissa where bf16 has them are 2^-120 of the
/// value, subnormals too. NaN becomes 480: see nan_e4m3.
template <class Ops>
constexpr void e4m3_four(std::uint32_t word, Eight& out, std::uint32_t j) {
  for (std::uint32_t i = 0; i < 2; ++i) {
    const std::uint32_t high = i == 0 ? word << 8 : word, shifted = i == 0 ? word << 4 : word >> 4;
    out.pair[j + i] = Ops::multiply(Ops::select(high, 0x80008000u, shifted & 0x07F007F0u), 0x7B807B80u);
  }
}

inline constexpr std::uint32_t kNanBits = 0x80808080u;
/// Some of kNanBits are set where a byte of the word is NaN, and only there.
constexpr std::uint32_t nan_e4m3(std::uint32_t word) { return (word & 0x7F7F7F7Fu) + 0x01010101u; }

/// 16 (q - 8) as signed bytes, of the codes q that are high halves of bytes.
template <class Ops>
constexpr std::uint32_t int4_high_halves(std::uint32_t word) {
  return Ops::exclude(word, 0xF0F0F0F0u, 0x80808080u);
}
/// The column of a word's eight that is byte i of int4_high_halves(word << 4) and of int4_high_halves(word).
constexpr int int4_column_of_byte(int i) { return i % 4 * 2 + i / 4; }

inline constexpr int kDigits = 3;
inline constexpr float kWholeAbove = 12582912;  // 1.5 2^23: a sum's bits count ones
/// A whole number from -2^22 to 2^22, of which these are the bits as a float with kWholeAbove added, as the
/// sum of 256^d times byte d ^ digit_sign(d), d < kDigits, as bytes from -128 to 127.
constexpr std::uint32_t digits_of(std::uint32_t sum_bits) { return sum_bits - 0x4B400000u + 0x8080u; }
constexpr std::uint32_t digit_sign(int d) { return d + 1 < kDigits ? 0x80u : 0u; }

}  // namespace ridge::kernels
