// The elements of a KV cache: their codes, and what they stand for before the scale.
#pragma once

#include <type_traits>

#include "core/base/dtype.h"
#include "core/base/error.h"
#include "kernels/formats/codes.h"
#include "kernels/kv_cache.h"

namespace ridge::kernels {

struct KvFp8 {
  std::uint8_t bits;
};
struct KvInt8 {
  std::uint8_t bits;
};

template <class K>
inline constexpr bool kKvScaled = std::is_same_v<K, KvFp8> || std::is_same_v<K, KvInt8>;

/// An absmax over this is a scale.
template <class K>
inline constexpr float kKvDivisor = std::is_same_v<K, KvFp8> ? 448.0f : 127.0f;

/// The code of an element over its scale.
template <class K>
constexpr std::uint8_t kv_code(float x) {
  return static_cast<std::uint8_t>(std::is_same_v<K, KvFp8> ? fp8_code(x) : int8_code(x));
}

/// Calls `f(std::type_identity<K>{})` for the type of the cache's elements.
template <class F>
decltype(auto) visit_kv(KvFormat format, F&& f) {
  switch (format) {
    case KvFormat::f32:
      return f(std::type_identity<float>{});
    case KvFormat::bf16:
      return f(std::type_identity<bf16>{});
    case KvFormat::fp8:
      return f(std::type_identity<KvFp8>{});
    case KvFormat::int8:
      return f(std::type_identity<KvInt8>{});
  }
  fail("a KV cache of an unknown format");
}

}  // namespace ridge::kernels
