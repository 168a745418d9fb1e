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

/// Lane i is v[index[i]], of as many low bits of index[i] as v needs. Clang has no such builtin.
template <class V, class I>
[[gnu::always_inline]] inline V pick(const V& v, const I& index) {
#if __has_builtin(__builtin_shuffle)
  return __builtin_shuffle(v, index);
#else
  constexpr auto kLast = sizeof(V) / sizeof(v[0]) - 1;
  V out;
  for (std::size_t i = 0; i <= kLast; ++i) out[i] = v[index[i] & kLast];
  return out;
#endif
}

/// The same out of a's lanes followed by b's.
template <class V, class I>
[[gnu::always_inline]] inline V pick(const V& a, const V& b, const I& index) {
#if __has_builtin(__builtin_shuffle)
  return __builtin_shuffle(a, b, index);
#else
  constexpr auto kLanes = sizeof(V) / sizeof(a[0]);
  V out;
  for (std::size_t i = 0; i < kLanes; ++i)
    out[i] = (index[i] & kLanes) == 0 ? a[index[i] & (kLanes - 1)] : b[index[i] & (kLanes - 1)];
  return out;
#endif
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
