#include "core/base/dtype.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "core/base/error.h"

namespace ridge {
namespace {

constexpr DType kAll[] = {DType::f32, DType::f64, DType::bf16, DType::f16,
                          DType::i32, DType::i64, DType::u8,   DType::i8};

TEST(DTypes, NamesAndWidths) {
  const std::size_t widths[] = {4, 8, 2, 2, 4, 8, 1, 1};
  for (std::size_t i = 0; i < std::size(kAll); ++i) {
    EXPECT_EQ(size_of(kAll[i]), widths[i]);
    EXPECT_EQ(parse_dtype(name_of(kAll[i])), kAll[i]);
    EXPECT_EQ(is_floating(kAll[i]), i < 4);
    visit_any(kAll[i], [&]<class T>(std::type_identity<T>) {
      EXPECT_EQ(dtype_of<T>, kAll[i]);
      EXPECT_EQ(dtype_of<const T>, kAll[i]);
      EXPECT_EQ(sizeof(T), widths[i]);
    });
  }
}

TEST(DTypes, AnUnknownNameIsTheUsersErrorAndListsTheOthers) {
  for (const char* name : {"", "float32", "F32", "f32 "}) {
    try {
      parse_dtype(name);
      FAIL() << name;
    } catch (const UserError& error) {
      EXPECT_NE(std::string(error.what()).find("bf16"), std::string::npos);
    }
  }
}

TEST(DTypes, ComputeTypesAreThree) {
  int visited = 0;
  for (const DType dtype : {DType::f32, DType::f64, DType::bf16}) {
    visit_compute(dtype, [&]<class T>(std::type_identity<T>) { visited += dtype_of<T> == dtype ? 1 : 0; });
  }
  EXPECT_EQ(visited, 3);
  for (const DType dtype : {DType::f16, DType::i32, DType::u8}) {
    EXPECT_THROW(visit_compute(dtype, []<class T>(std::type_identity<T>) {}), Error);
  }
}

// A binary16 by the definition of IEEE 754.
double by_definition(std::uint16_t bits) {
  const int exponent = (bits >> 10) & 31, mantissa = bits & 1023;
  const double sign = bits & 0x8000 ? -1 : 1;
  if (exponent == 31) return mantissa ? std::numeric_limits<double>::quiet_NaN() : sign * INFINITY;
  if (exponent == 0) return sign * std::ldexp(mantissa, -24);
  return sign * std::ldexp(1024 + mantissa, exponent - 25);
}

// The nearest value of a format with ascending bit patterns up to `infinity`; ties go to the even pattern.
// Infinity stands one step above the greatest number.
template <class Decode>
std::uint16_t nearest(double value, std::uint16_t infinity, const Decode& decode) {
  std::uint16_t low = 0, high = infinity;
  const double magnitude = std::fabs(value);
  while (high - low > 1) {
    const auto middle = static_cast<std::uint16_t>((low + high) / 2);
    (decode(middle) <= magnitude ? low : high) = middle;
  }
  const double below = decode(low);
  const double above =
      high == infinity ? 2 * below - decode(static_cast<std::uint16_t>(low - 1)) : decode(high);
  const double middle = (below + above) / 2;
  const bool up = magnitude > middle || (magnitude == middle && low % 2 == 1);
  return static_cast<std::uint16_t>((up ? high : low) | (std::signbit(value) ? 0x8000 : 0));
}

double bf16_by_definition(std::uint16_t bits) {
  return static_cast<double>(std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16));
}

TEST(F16, EveryPatternDecodesAndComesBack) {
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    f16 value;
    value.bits = static_cast<std::uint16_t>(bits);
    const auto got = static_cast<float>(value);
    const double want = by_definition(value.bits);
    if (std::isnan(want)) {
      EXPECT_TRUE(std::isnan(got)) << bits;
      EXPECT_TRUE(std::isnan(static_cast<float>(f16(got)))) << bits;
    } else {
      ASSERT_EQ(static_cast<double>(got), want) << bits;
      ASSERT_EQ(std::signbit(got), (bits & 0x8000) != 0) << bits;
      ASSERT_EQ(f16(got).bits, bits);
    }
  }
}

std::vector<float> hard_numbers() {
  std::vector<float> values{0.0f,           -0.0f,           65504.0f,     65519.99f,     65520.0f,
                            -65520.0f,      1e38f,           0x1p-14f,     0x1p-24f,      0x1p-25f,
                            0x1.8p-25f,     0x1.000002p-25f, -0x1p-26f,    0x1.ffep-15f,  0x1.fffp-15f,
                            1.00048828125f, 1.00146484375f,  3.402823e38f, 3.3895314e38f, 1e-45f};
  std::mt19937 rng(1);
  for (int i = 0; i < 200000; ++i) {
    const float any = std::bit_cast<float>(static_cast<std::uint32_t>(rng()));
    if (std::isfinite(any)) values.push_back(any);
    values.push_back(
        std::ldexp(static_cast<float>(rng() & 0x3FFF) - 8192.0f, static_cast<int>(rng() % 44) - 38));  // ties
  }
  return values;
}

TEST(F16, RoundsToNearestEven) {
  for (const float x : hard_numbers())
    ASSERT_EQ(f16(x).bits, nearest(static_cast<double>(x), 0x7C00, by_definition)) << x;
}

TEST(Bf16, RoundsToNearestEven) {
  for (const float x : hard_numbers())
    ASSERT_EQ(bf16(x).bits, nearest(static_cast<double>(x), 0x7F80, bf16_by_definition)) << x;
}

TEST(Bf16, EveryPatternComesBack) {
  for (std::uint32_t bits = 0; bits < 65536; ++bits) {
    bf16 value;
    value.bits = static_cast<std::uint16_t>(bits);
    const auto wide = static_cast<float>(value);
    if (std::isnan(wide)) {
      EXPECT_TRUE(std::isnan(static_cast<float>(bf16(wide)))) << bits;
    } else {
      ASSERT_EQ(bf16(wide).bits, bits);
    }
  }
}

TEST(HalfTypes, NotANumberStaysOne) {
  for (const std::uint32_t bits : {0x7F800001u, 0x7FFFFFFFu, 0xFF800001u, 0x7FC00000u}) {
    const float nan = std::bit_cast<float>(bits);
    EXPECT_TRUE(std::isnan(static_cast<float>(bf16(nan)))) << bits;
    EXPECT_TRUE(std::isnan(static_cast<float>(f16(nan)))) << bits;
  }
  const float infinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(static_cast<float>(bf16(-infinity)), -infinity);
  EXPECT_EQ(static_cast<float>(f16(infinity)), infinity);
}

}  // namespace
}  // namespace ridge
