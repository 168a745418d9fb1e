// Element types, their widths, and the one visitor that dispatches on them.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <type_traits>

namespace ridge {

enum class DType : std::uint8_t { f32, f64, bf16, f16, i32, i64, u8, i8 };

/// bfloat16: the upper half of an f32; rounds to nearest even.
struct bf16 {
  std::uint16_t bits = 0;
  bf16() = default;
  explicit bf16(float value) {
    const auto u = std::bit_cast<std::uint32_t>(value);
    const std::uint32_t rounded = (u + 0x7FFFu + ((u >> 16) & 1u)) >> 16;
    const bool nan = (u & 0x7FFFFFFFu) > 0x7F800000u;
    bits = static_cast<std::uint16_t>(nan ? ((u >> 16) | 0x40u) : rounded);
  }
  explicit operator float() const { return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16); }
};

/// IEEE 754 binary16; rounds to nearest even. Arithmetic happens in f32.
struct f16 {
  std::uint16_t bits = 0;
  f16() = default;
  explicit f16(float value) : bits(encode(value)) {}
  explicit operator float() const { return decode(bits); }
  static std::uint16_t encode(float value);
  static float decode(std::uint16_t bits);
};

template <class T>
struct dtype_of_impl;
template <>
struct dtype_of_impl<float> {
  static constexpr DType value = DType::f32;
};
template <>
struct dtype_of_impl<double> {
  static constexpr DType value = DType::f64;
};
template <>
struct dtype_of_impl<bf16> {
  static constexpr DType value = DType::bf16;
};
template <>
struct dtype_of_impl<f16> {
  static constexpr DType value = DType::f16;
};
template <>
struct dtype_of_impl<std::int32_t> {
  static constexpr DType value = DType::i32;
};
template <>
struct dtype_of_impl<std::int64_t> {
  static constexpr DType value = DType::i64;
};
template <>
struct dtype_of_impl<std::uint8_t> {
  static constexpr DType value = DType::u8;
};
template <>
struct dtype_of_impl<std::int8_t> {
  static constexpr DType value = DType::i8;
};

template <class T>
inline constexpr DType dtype_of = dtype_of_impl<std::remove_const_t<T>>::value;

/// The type in which sums over T are kept: double for double, else float.
template <class T>
using acc_t = std::conditional_t<std::is_same_v<std::remove_const_t<T>, double>, double, float>;

/// Bytes of one element.
std::size_t size_of(DType dtype);
std::string_view name_of(DType dtype);
/// The dtype called `name` ("f32", "bf16", ...); a UserError names the accepted ones.
DType parse_dtype(std::string_view name);
bool is_floating(DType dtype);

namespace detail {
[[noreturn]] void throw_not_float(DType dtype);
}

/// Calls `f(std::type_identity<T>{})` for a compute type: f32, f64 or bf16.
template <class F>
decltype(auto) visit_compute(DType dtype, F&& f) {
  switch (dtype) {
    case DType::f32:
      return f(std::type_identity<float>{});
    case DType::f64:
      return f(std::type_identity<double>{});
    case DType::bf16:
      return f(std::type_identity<bf16>{});
    default:
      detail::throw_not_float(dtype);
  }
}

/// Calls `f(std::type_identity<T>{})` for any dtype: storage, copies and conversions.
template <class F>
decltype(auto) visit_any(DType dtype, F&& f) {
  switch (dtype) {
    case DType::f32:
      return f(std::type_identity<float>{});
    case DType::f64:
      return f(std::type_identity<double>{});
    case DType::bf16:
      return f(std::type_identity<bf16>{});
    case DType::f16:
      return f(std::type_identity<f16>{});
    case DType::i32:
      return f(std::type_identity<std::int32_t>{});
    case DType::i64:
      return f(std::type_identity<std::int64_t>{});
    case DType::u8:
      return f(std::type_identity<std::uint8_t>{});
    case DType::i8:
      return f(std::type_identity<std::int8_t>{});
  }
  detail::throw_not_float(dtype);
}

}  // namespace ridge
