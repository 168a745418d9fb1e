// Vectors of 64 bytes for kernels that name them: GCC turns them into what the CPU has.
#pragma once

#include <cstdint>
#include <cstring>

namespace ridge::kernels::lanes {

inline constexpr std::int64_t kCount = 16;

using Floats = float __attribute__((vector_size(64)));
using Words = std::uint32_t __attribute__((vector_size(64)));
using Ints = std::int32_t __attribute__((vector_size(64)));
using Bytes = std::uint8_t __attribute__((vector_size(64)));

/// From any address.
template <class V>
V load(const void* from) {
  V value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

/// As load, for what memory is slow to give: GCC would rather load again than keep a register, and each such
/// load waits for the line too.
template <class V>
V load_once(const void* from) {
  using Loose __attribute__((aligned(1), may_alias)) = V;
  return *static_cast<const volatile Loose*>(from);
}

inline float sum(const Floats& v) {
  using Half = float __attribute__((vector_size(32)));
  using Quarter = float __attribute__((vector_size(16)));
  const char* bytes = reinterpret_cast<const char*>(&v);
  const Half half = load<Half>(bytes) + load<Half>(bytes + sizeof(Half));
  const char* more = reinterpret_cast<const char*>(&half);
  const Quarter quarter = load<Quarter>(more) + load<Quarter>(more + sizeof(Quarter));
  return (quarter[0] + quarter[1]) + (quarter[2] + quarter[3]);
}

}  // namespace ridge::kernels::lanes
