// bf16 and f16 as bits.
#pragma once

#include <bit>
#include <cstdint>

#include "core/base/dtype.h"

namespace ridge::emulated {

inline float from_bf16(std::uint16_t bits) {
  bf16 x;
  x.bits = bits;
  return static_cast<float>(x);
}
inline std::uint16_t to_bf16(float x) { return bf16(x).bits; }
inline float from_f16(std::uint16_t bits) { return static_cast<float>(std::bit_cast<_Float16>(bits)); }
inline std::uint16_t to_f16(float x) { return std::bit_cast<std::uint16_t>(static_cast<_Float16>(x)); }

}  // namespace ridge::emulated
