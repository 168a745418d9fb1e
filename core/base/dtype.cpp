#include "core/base/dtype.h"

#include <array>
#include <cmath>
#include <utility>

#include "core/base/error.h"

namespace ridge {
namespace {

struct Row {
  DType dtype;
  std::string_view name;
  std::size_t size;
};

constexpr std::array<Row, 8> kRows{{{DType::f32, "f32", 4},
                                    {DType::f64, "f64", 8},
                                    {DType::bf16, "bf16", 2},
                                    {DType::f16, "f16", 2},
                                    {DType::i32, "i32", 4},
                                    {DType::i64, "i64", 8},
                                    {DType::u8, "u8", 1},
                                    {DType::i8, "i8", 1}}};

const Row& row(DType dtype) { return kRows.at(static_cast<std::size_t>(dtype)); }

}  // namespace

std::uint16_t f16::encode(float value) {
  const auto u = std::bit_cast<std::uint32_t>(value);
  const auto sign = static_cast<std::uint16_t>((u >> 16) & 0x8000u);
  const float magnitude = std::fabs(value);
  if (std::isnan(value)) return static_cast<std::uint16_t>(sign | 0x7E00u);
  if (magnitude >= 65520.0f) return static_cast<std::uint16_t>(sign | 0x7C00u);
  if (magnitude < 0x1p-14f) {  // subnormal: units of 2^-24, rounded to even by nearbyint
    return static_cast<std::uint16_t>(sign | static_cast<std::uint16_t>(std::nearbyint(magnitude * 0x1p24f)));
  }
  const std::uint32_t m = u & 0x7FFFFFFFu;
  const std::uint32_t rounded = m + 0xFFFu + ((m >> 13) & 1u);
  return static_cast<std::uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}

float f16::decode(std::uint16_t bits) {
  const std::uint32_t sign = (bits & 0x8000u) << 16;
  const std::uint32_t exponent = (bits >> 10) & 0x1Fu;
  const std::uint32_t mantissa = bits & 0x3FFu;
  if (exponent == 0) {
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return sign ? -magnitude : magnitude;
  }
  const std::uint32_t wide = exponent == 31 ? 255u : exponent + 112u;
  return std::bit_cast<float>(sign | (wide << 23) | (mantissa << 13));
}

std::size_t size_of(DType dtype) { return row(dtype).size; }

std::string_view name_of(DType dtype) { return row(dtype).name; }

DType parse_dtype(std::string_view name) {
  for (const Row& r : kRows) {
    if (r.name == name) return r.dtype;
  }
  fail_user("unknown dtype '{}': use one of f32, f64, bf16, f16, i32, i64, u8, i8", name);
}

bool is_floating(DType dtype) {
  return dtype == DType::f32 || dtype == DType::f64 || dtype == DType::bf16 || dtype == DType::f16;
}

namespace detail {
void throw_not_float(DType dtype) {
  fail("{} is not a compute type: cast to f32 or bf16 first", name_of(dtype));
}
}  // namespace detail

}  // namespace ridge
