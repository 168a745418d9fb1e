#include "kernels/quantize.h"

#include <limits>
#include <map>

#include "kernels/formats/codes.h"
#include "kernels/quantize_nested.h"
#include "tests/kernels/quantized_array.h"

namespace ridge::kernels::testing {
namespace {

constexpr const char* kFormats[] = {"int8",        "fp8",         "fp8-block",   "nf4",      "nf4-dq",
                                    "fp4",         "fp4-dq",      "int4-g32",    "int4-g64", "int4-g128",
                                    "int4-g32-zp", "int4-g64-zp", "int4-g128-zp"};

constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Size {
  std::int64_t rows, cols;
};

/// Odd ones, blocks across rows, partial last blocks and tiles, more than one block of the second level.
std::vector<Size> sizes_of(const WeightFormat& format) {
  if (format.codes == Codes::int4) return {{1, 128}, {3, 384}, {37, 640}};
  return {{1, 1}, {3, 7}, {5, 64}, {7, 93}, {129, 72}, {131, 257}, {150, 384}};
}

/// Values by code.
std::vector<double> values_of(const WeightFormat& f, int zero) {
  std::vector<double> values;
  for (int c = 0; c < (f.bits() == 8 ? 256 : 16); ++c)
    values.push_back(code_value(f, static_cast<std::uint8_t>(c), zero));
  return values;
}

/// How much further from x a code's value lies than the nearest of all.
double regret(const std::vector<double>& values, std::uint8_t code, double x) {
  double best = std::numeric_limits<double>::infinity();
  for (const double value : values) {
    const double away = std::fabs(value - x);
    if (away < best) best = away;
  }
  return std::fabs(values[code] - x) - best;
}

/// Of the elements that share a scale.
struct Extent {
  double absmax = 0, least = 0, greatest = 0;
};

/// One an element.
std::vector<Extent> extents_of(const QuantizedArray& q, const std::vector<double>& w) {
  std::map<std::int64_t, Extent> groups;
  const auto key = [&](std::int64_t i) {
    const std::int64_t row = i / q.cols, col = i % q.cols;
    if (q.format.flat()) return i / kFlatBlock;
    if (q.format.tiles) return row / kTile * 1000 + col / kTile;
    return q.format.group > 0 ? i / q.format.group : row;
  };
  const std::int64_t n = q.rows * q.cols;
  for (std::int64_t i = 0; i < n; ++i) {
    Extent& e = groups[key(i)];
    e.absmax = std::max(e.absmax, std::fabs(w[i]));
    e.least = std::min(e.least, w[i]), e.greatest = std::max(e.greatest, w[i]);
  }
  std::vector<Extent> extents;
  for (std::int64_t i = 0; i < n; ++i) extents.push_back(groups[key(i)]);
  return extents;
}

double wanted_scale(const WeightFormat& f, const Extent& e) {
  if (f.flat()) return e.absmax;
  if (f.zero_points) return (e.greatest - e.least) / 15;
  return e.absmax / (f.codes == Codes::int8 ? 127.5 : (f.codes == Codes::fp8 ? 448 : 7.5));
}

template <class T>
void expect_definition(const char* name, Size size, bool narrow) {
  SCOPED_TRACE(::testing::Message() << name << " " << size.rows << " x " << size.cols);
  auto w = Array<T>::gapped({size.rows, size.cols}, size.cols % 8 == 0 ? 8 : 3);
  w.randomize(static_cast<std::uint64_t>(size.rows * 7 + size.cols), -3, 2);
  QuantizedArray q(name, size.rows, size.cols, narrow);
  quantize<T>(test_stream(), w.in(), q.target());
  wait_for_device();
  const std::vector<double> values = w.values();
  const std::int64_t n = size.rows * size.cols;
  const std::vector<Extent> extents = extents_of(q, values);
  std::vector<std::vector<double>> tables;  // by zero point
  for (int zero = 0; zero < 16; ++zero) tables.push_back(values_of(q.format, zero));
  // Rounding of the quotient; values of int8 and fp8 are not within [-1, 1].
  const double slack = q.format.bits() == 8 ? 4e-5 : 2e-6;
  for (std::int64_t i = 0; i < n; ++i) {
    const double want = wanted_scale(q.format, extents[i]);
    const float scale = q.format.double_quant ? static_cast<float>(want) : q.scale_of_element(i);
    ASSERT_NEAR(scale, want, want * (narrow ? 4e-3 : 1e-6)) << i;
    const double x = values[i] / double{scale};
    ASSERT_LE(regret(tables[q.zero_of_element(i)], q.code(i), x), slack) << i << ": " << x;
  }
  if (n % 2 != 0 && q.format.flat()) {
    EXPECT_EQ(q.code(n), q.format.codes == Codes::nf4 ? 7 : 0) << "zero follows an odd count";
  }
  EXPECT_EQ(first_bad_scale(q.view()), -1);
}

TEST(Quantize, MatchesTheDefinition) {
  for (const char* name : kFormats) {
    for (const Size size : sizes_of(parse_weight_format(name))) {
      expect_definition<float>(name, size, false);
      expect_definition<bf16>(name, size, false);
      if (parse_weight_format(name).codes == Codes::int4) expect_definition<bf16>(name, size, true);
    }
  }
}

/// f32 products, rounded once more to T.
template <class T>
void expect_values(const char* name, Size size, bool narrow) {
  SCOPED_TRACE(::testing::Message() << name << " " << size.rows << " x " << size.cols);
  Array<float> w({size.rows, size.cols});
  w.randomize(3);
  QuantizedArray q(name, size.rows, size.cols, narrow);
  quantize<float>(test_stream(), w.in(), q.target());
  auto out = Array<T>::gapped({size.rows, size.cols}, size.cols % 8 == 0 ? 8 : 5);
  dequantize<T>(test_stream(), q.view(), out.view());
  const std::vector<double> got = out.values();
  for (std::int64_t i = 0; i < size.rows * size.cols; ++i) {
    const double value = code_value(q.format, q.code(i), q.zero_of_element(i));
    const auto product = static_cast<float>(value * double{q.scale_of_element(i)});
    const double want = std::is_same_v<T, bf16> ? double{static_cast<float>(bf16(product))} : double{product};
    ASSERT_EQ(got[i], want) << i;
  }
}

TEST(Dequantize, IsCodeTimesScale) {
  for (const char* name : kFormats) {
    for (const Size size : sizes_of(parse_weight_format(name))) {
      expect_values<float>(name, size, false);
      expect_values<double>(name, size, false);
      expect_values<bf16>(name, size, false);
      if (parse_weight_format(name).codes == Codes::int4) expect_values<bf16>(name, size, true);
    }
  }
}

// Relative to what the format can resolve: half of the widest gap between values, times the scale.
TEST(Dequantize, GivesBackWhatWasQuantized) {
  const struct {
    const char* name;
    double error;
  } kCases[] = {{"int8", 0.5 / 127}, {"fp8", 1.0 / 16}, {"fp8-block", 1.0 / 16}, {"nf4", 0.16},
                {"nf4-dq", 0.20},    {"fp4", 0.18},     {"int4-g32", 0.5 / 7},   {"int4-g128-zp", 1.0 / 14}};
  for (const auto& c : kCases) {
    Array<float> w({65, 256}), back({65, 256});
    w.randomize(5, -1, 1);
    QuantizedArray q(c.name, 65, 256);
    quantize<float>(test_stream(), w.in(), q.target());
    dequantize<float>(test_stream(), q.view(), back.view());
    const std::vector<double> got = back.values(), want = w.values();
    double worst = 0;
    for (std::size_t i = 0; i < got.size(); ++i) worst = std::max(worst, std::fabs(got[i] - want[i]));
    EXPECT_LE(worst, c.error * 1.01) << c.name;
    EXPECT_GE(worst, c.error / 4) << c.name;
  }
}

TEST(Quantize, SecondLevelFollowsItsDefinition) {
  Array<float> w({150, 384});  // 900 blocks
  w.randomize(11);
  for (std::size_t i = 0; i < w.data().size(); ++i) w.data()[i] *= static_cast<float>(1 + i / 64 % 17);
  QuantizedArray plain("nf4", 150, 384), q("nf4-dq", 150, 384);
  quantize<float>(test_stream(), w.in(), plain.target());
  quantize<float>(test_stream(), w.in(), q.target());
  Array<float> scales({q.count});
  dequantize_scales(test_stream(), q.view(), scales.view());
  wait_for_device();
  EXPECT_EQ(plain.codes, q.codes);
  double mean = 0;
  for (const float s : plain.scales) mean += double{s} / static_cast<double>(q.count);
  EXPECT_NEAR(q.offset[0], mean, mean * 1e-7);
  for (std::int64_t b = 0; b < q.count; ++b) {
    double absmax = 0;
    for (std::int64_t i = b / 256 * 256; i < std::min(q.count, b / 256 * 256 + 256); ++i)
      absmax = std::max(absmax, std::fabs(double{plain.scales[i]} - double{q.offset[0]}));
    ASSERT_NEAR(q.nested_scales[b / 256], absmax, absmax * 1e-6);
    const double x = (double{plain.scales[b]} - double{q.offset[0]}) / absmax;
    double best = 9;
    for (const float value : q.map) best = std::min(best, std::fabs(double{value} - x));
    ASSERT_LE(std::fabs(double{q.map[q.scale_codes[b]]} - x), best + 1e-6) << b;
    ASSERT_EQ(scales.data()[b], q.scale_of_element(b * 64)) << b;
  }
}

TEST(Quantize, ZerosHaveCodesOfZero) {
  for (const char* name : kFormats) {
    Array<float> w({3, 384}), back({3, 384});
    QuantizedArray q(name, 3, 384);
    quantize<float>(test_stream(), w.in(), q.target());
    back.data().assign(back.data().size(), 7.0f);
    dequantize<float>(test_stream(), q.view(), back.view());
    for (const double x : back.values()) ASSERT_EQ(x, 0) << name;
    EXPECT_EQ(first_bad_scale(q.view()), -1) << name;
    if (!q.format.double_quant) {
      EXPECT_EQ(q.scales[0], q.format.flat() ? 0.0f : 1.0f) << name;
    }
  }
}

// A row of zeros among others keeps zeros, though under double quantization its scale does not come back as
// 0.
TEST(Quantize, ZeroRowsStayZero) {
  for (const char* name : kFormats) {
    Array<float> w({4, 384}), back({4, 384});
    w.randomize(2);
    std::fill(w.data().begin() + 384, w.data().begin() + 768, 0.0f);
    QuantizedArray q(name, 4, 384);
    quantize<float>(test_stream(), w.in(), q.target());
    dequantize<float>(test_stream(), q.view(), back.view());
    for (std::size_t i = 384; i < 768; ++i) ASSERT_EQ(back.data()[i], 0) << name << " " << i;
  }
}

TEST(Quantize, HugeAndTinyElements) {
  for (const char* name : kFormats) {
    for (const float size : {3e38f, 1e-30f, 2e-38f, 1e-40f}) {
      Array<float> w({2, 384}), back({2, 384});
      w.randomize(4, -1, 1);
      for (float& x : w.data()) x *= size;
      QuantizedArray q(name, 2, 384);
      quantize<float>(test_stream(), w.in(), q.target());
      dequantize<float>(test_stream(), q.view(), back.view());
      const std::vector<double> got = back.values(), want = w.values();
      const bool too_wide = q.format.zero_points && size == 3e38f;  // max - min is no float
      EXPECT_EQ(first_bad_scale(q.view()), too_wide ? 0 : -1) << name << " " << size;
      if (too_wide) continue;
      const double room = size * (q.format.double_quant ? 0.25 : 0.2) + (size < 1e-37f ? 8e-39 : 0);
      for (std::size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], want[i], room) << name << " " << size;
    }
  }
}

TEST(Quantize, WhatIsNotFiniteShowsInTheScale) {
  for (const char* name : kFormats) {
    for (const float bad : {std::numeric_limits<float>::quiet_NaN(), kInfinity, -kInfinity}) {
      Array<float> w({4, 384});
      w.randomize(6);
      w.data()[2 * 384 + 300] = bad;
      QuantizedArray q(name, 4, 384);
      quantize<float>(test_stream(), w.in(), q.target());
      std::int64_t want = 2;  // the row
      if (q.format.tiles) want = 2;
      if (q.format.flat()) want = (2 * 384 + 300) / 64;
      if (q.format.codes == Codes::int4) want = (2 * 384 + 300) / q.format.group;
      if (q.format.double_quant) want = 0;  // the mean is lost, and all with it
      EXPECT_EQ(first_bad_scale(q.view()), want) << name << " " << bad;
    }
  }
}

TEST(Quantize, BadScalesAreFound) {
  for (const char* name : {"int8", "fp8-block", "int4-g32", "nf4"}) {
    for (const float bad : {0.0f, -1.0f, kInfinity, std::numeric_limits<float>::quiet_NaN()}) {
      for (const bool narrow : {false, true}) {
        QuantizedArray q(name, 3, 320, narrow);
        if (narrow && q.format.codes != Codes::int4) continue;
        std::fill(q.scales.begin(), q.scales.end(), 1.0f);
        std::fill(q.narrow_scales.begin(), q.narrow_scales.end(), bf16(1.0f));
        EXPECT_EQ(first_bad_scale(q.view()), -1);
        q.scales[2] = bad, q.narrow_scales[2] = bf16(bad);
        const bool fine = bad == 0 && q.format.flat();  // of a block of zeros
        EXPECT_EQ(first_bad_scale(q.view()), fine ? -1 : 2) << name << " " << bad;
      }
    }
  }
}

TEST(Quantize, Fp8CodesAreTheNearest) {
  const WeightFormat fp8{Codes::fp8};
  for (int code = 0; code < 256; ++code) {
    const double value = code_value(fp8, static_cast<std::uint8_t>(code), 0);
    const float got = fp8_value(static_cast<std::uint32_t>(code));
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(got));
      continue;
    }
    EXPECT_EQ(double{got}, value);
    EXPECT_EQ(fp8_code(got), static_cast<std::uint32_t>(code));
    // Halfway to the next of the same sign: to the even one; a hair further: to the nearer.
    if ((code & 127) >= 126) continue;
    const double next = code_value(fp8, static_cast<std::uint8_t>(code + 1), 0);
    const auto middle = static_cast<float>((value + next) / 2);
    const auto up = static_cast<std::uint32_t>(code + 1);
    EXPECT_EQ(fp8_code(middle), code % 2 == 0 ? up - 1 : up);
    EXPECT_EQ(fp8_code(std::nextafter(middle, static_cast<float>(next))), up);
    EXPECT_EQ(fp8_code(std::nextafter(middle, static_cast<float>(value))), up - 1);
  }
  EXPECT_EQ(fp8_code(448.0f), 0x7Eu);
  EXPECT_EQ(fp8_code(1.0f), 0x38u);
  EXPECT_EQ(fp8_code(0x1p-9f), 0x01u);
  for (const float large : {449.0f, 464.0f, 465.0f, 1e30f, kInfinity}) {
    EXPECT_EQ(fp8_code(large), 0x7Eu) << large;
    EXPECT_EQ(fp8_code(-large), 0xFEu) << large;
  }
  EXPECT_EQ(fp8_code(std::numeric_limits<float>::quiet_NaN()), 0x7Fu);
  EXPECT_EQ(fp8_code(-0.0f), 0x80u);
  EXPECT_EQ(fp8_code(1e-40f), 0u);
}

TEST(Quantize, FourBitThresholds) {
  for (std::uint32_t c = 0; c < 16; ++c) EXPECT_EQ(nf4_code(nf4_values()[c]), c);
  for (std::uint32_t c = 0; c < 15; ++c) {
    const float t = nf4_thresholds()[c];
    EXPECT_EQ(nf4_code(t), c) << "equality stays low";
    EXPECT_EQ(nf4_code(std::nextafter(t, 2.0f)), c + 1);
  }
  for (std::uint32_t c = 0; c < 16; ++c) EXPECT_EQ(fp4_code(fp4_values()[c]), c == 8 ? 0 : c);
  const std::uint32_t below[] = {0, 1, 6, 7, 4, 5, 2}, above[] = {1, 6, 7, 4, 5, 2, 3};
  for (std::size_t i = 0; i < 7; ++i) {
    const float t = fp4_thresholds()[i];
    EXPECT_EQ(fp4_code(t), below[i]);
    EXPECT_EQ(fp4_code(std::nextafter(t, 2.0f)), above[i]);
    EXPECT_EQ(fp4_code(-t), below[i] + 8);
    EXPECT_EQ(fp4_code(-std::nextafter(t, 2.0f)), above[i] + 8);
  }
}

TEST(Quantize, SameBitsOnThreads) {
  Array<float> w({300, 1024});
  w.randomize(8);
  expect_same_bits_on_threads([&] {
    std::vector<std::uint8_t> all;
    for (const char* name : kFormats) {
      QuantizedArray q(name, 300, 1024);
      quantize<float>(test_stream(), w.in(), q.target());
      const auto add = [&](const void* data, std::size_t size) {
        const auto* bytes = static_cast<const std::uint8_t*>(data);
        all.insert(all.end(), bytes, bytes + size);
      };
      add(q.codes.data(), q.codes.size()), add(q.scale_codes.data(), q.scale_codes.size());
      add(q.scales.data(), q.scales.size() * 4), add(q.nested_scales.data(), q.nested_scales.size() * 4);
      add(q.offset.data(), 4);
    }
    return all;
  });
}

template <class T>
void expect_bits_of_cpu(const char* name, Size size, bool narrow) {
  SCOPED_TRACE(::testing::Message() << name << " " << size.rows << " x " << size.cols);
  Array<T> w({size.rows, size.cols});
  w.randomize(9, -5, 3);
  QuantizedArray here(name, size.rows, size.cols, narrow), there(name, size.rows, size.cols, narrow);
  quantize<T>(cpu(), w.in(), here.target());
  quantize<T>(test_stream(), w.in(), there.target());
  wait_for_device();
  EXPECT_EQ(here.codes, there.codes);
  EXPECT_EQ(here.scales, there.scales);
  EXPECT_EQ(here.zeros, there.zeros);
  EXPECT_EQ(here.scale_codes, there.scale_codes);
  EXPECT_EQ(here.nested_scales, there.nested_scales);
  EXPECT_EQ(here.map, there.map);
  EXPECT_EQ(here.offset, there.offset);
  for (std::size_t i = 0; i < here.narrow_scales.size(); ++i)
    ASSERT_EQ(here.narrow_scales[i].bits, there.narrow_scales[i].bits);
}

TEST(Quantize, SameBitsOnAGpu) {
  if (!on_gpu()) GTEST_SKIP() << "needs a GPU";
  for (const char* name : kFormats) {
    std::vector<Size> sizes = sizes_of(parse_weight_format(name));
    sizes.push_back({1100, 1024});  // more than one part of the mean
    for (const Size size : sizes) {
      expect_bits_of_cpu<float>(name, size, false);
      expect_bits_of_cpu<bf16>(name, size, parse_weight_format(name).codes == Codes::int4);
    }
  }
}

TEST(Quantize, StatesItsWorkOnMeta) {
  QuantTarget target;
  target.format = parse_weight_format("nf4");
  target.rows = 8, target.cols = 128;
  const LaunchRecord there = launched_on_meta([&](Stream& s) {
    quantize<float>(s, meta_view<const float>({8, 128}), target);
  });
  EXPECT_EQ(there.bytes, 8 * 128 * 4 + 8 * 64 + 16 * 4);
  QuantView view;
  view.format = target.format;
  view.rows = 8, view.cols = 128;
  const LaunchRecord back = launched_on_meta([&](Stream& s) {
    dequantize<bf16>(s, view, meta_view<bf16>({8, 128}));
  });
  EXPECT_EQ(back.bytes, 8 * 128 * 2 + 8 * 64 + 16 * 4);
  view.format = parse_weight_format("nf4-dq");
  launched_on_meta([&](Stream& s) { dequantize_scales(s, view, meta_view<float>({16})); });
}

TEST(Quantize, RefusesOtherShapes) {
  QuantizedArray q("int8", 4, 8);
  Array<float> w({4, 9}), out({5, 8});
  EXPECT_THROW(quantize<float>(cpu(), w.in(), q.target()), Error);
  EXPECT_THROW(dequantize<float>(cpu(), q.view(), out.view()), Error);
  EXPECT_THROW(dequantize_scales(cpu(), q.view(), out.view()), Error);
}

}  // namespace
}  // namespace ridge::kernels::testing
