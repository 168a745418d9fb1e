#include "kernels/quant_matmul.h"

#include <algorithm>

#include "tests/kernels/kernel_test.h"
#include "tests/kernels/quantized_array.h"

namespace ridge::kernels::testing {
namespace {

constexpr const char* kFormats[] = {"int8",        "fp8",         "fp8-block",   "nf4",      "nf4-dq",
                                    "fp4",         "fp4-dq",      "int4-g32",    "int4-g64", "int4-g128",
                                    "int4-g32-zp", "int4-g64-zp", "int4-g128-zp"};

// A matrix of random codes and scales, and its values by the definitions of the formats.
class RandomWeight {
 public:
  RandomWeight(const WeightFormat& format, std::int64_t rows, std::int64_t cols, std::uint64_t seed,
               DType scale_dtype = DType::f32)
      : engine_(seed) {
    view_.format = format;
    view_.rows = rows;
    view_.cols = cols;
    view_.scale_dtype = scale_dtype;
    view_.first_block = 1000;  // a piece, from the middle of a nested block on
    view_.row_blocks = cols / std::max<std::int64_t>(1, format.group) + 6 + rows % 2;
    fill_codes();
    fill_scales();
  }
  RandomWeight(const RandomWeight&) = delete;
  RandomWeight& operator=(const RandomWeight&) = delete;

  const QuantView& view() const { return view_; }

  double value(std::int64_t n, std::int64_t k) const {
    const WeightFormat& f = view_.format;
    const std::int64_t groups = f.group == 0 ? 1 : (view_.cols + f.group - 1) / f.group;
    const std::int64_t group = (f.tiles ? n / f.group : n) * groups + (f.group == 0 ? 0 : k / f.group);
    const double scale = f.double_quant ? nested(n, k / f.group, group) : scale_at(group);
    const int zero = f.zero_points ? zeros_[static_cast<std::size_t>(group)] : 8;
    return scale * code_value(view_.format, static_cast<std::uint8_t>(code(n, k)), zero);
  }

 private:
  void fill_codes() {
    codes_.resize(static_cast<std::size_t>(code_bytes(view_.format, view_.rows, view_.cols)));
    for (std::uint8_t& byte : codes_) {
      byte = static_cast<std::uint8_t>(engine_());
      if (view_.format.codes == Codes::fp8 && (byte & 127) == 127) byte = 1;  // NaN: a test of its own
    }
    view_.codes = codes_.data();
  }

  void fill_scales() {
    const auto count = static_cast<std::size_t>(scale_count(view_.format, view_.rows, view_.cols));
    std::uniform_real_distribution<float> draw(0.01f, 0.1f);
    if (view_.format.double_quant) {
      for (std::size_t i = 0; i < count; ++i) scale_codes_.push_back(static_cast<std::uint8_t>(engine_()));
      for (std::int64_t i = 0; i <= (1000 + view_.rows * view_.row_blocks) / 256; ++i)
        nested_scales_.push_back(draw(engine_));
      for (int i = 0; i < 256; ++i) nested_map_.push_back(static_cast<float>(i - 127) / 128);
      nested_offset_.push_back(0.1f);
      view_.scale_codes = scale_codes_.data();
      view_.nested_scales = nested_scales_.data();
      view_.nested_map = nested_map_.data();
      view_.nested_offset = nested_offset_.data();
      return;
    }
    for (std::size_t i = 0; i < count; ++i) {
      scales_.push_back(draw(engine_));
      narrow_scales_.push_back(bf16(scales_.back()));
      if (view_.format.zero_points) zeros_.push_back(static_cast<std::uint8_t>(engine_() % 16));
    }
    view_.scales = view_.scale_dtype == DType::bf16 ? static_cast<const void*>(narrow_scales_.data())
                                                    : static_cast<const void*>(scales_.data());
    if (view_.format.zero_points) view_.zeros = zeros_.data();
  }

  double scale_at(std::int64_t group) const {
    const auto at = static_cast<std::size_t>(group);
    return view_.scale_dtype == DType::bf16 ? static_cast<float>(narrow_scales_[at]) : scales_[at];
  }

  double nested(std::int64_t n, std::int64_t block, std::int64_t at) const {
    const std::int64_t whole = view_.first_block + n * view_.row_blocks + block;
    const double second = nested_scales_[static_cast<std::size_t>(whole / 256)];
    return nested_map_[scale_codes_[static_cast<std::size_t>(at)]] * second + nested_offset_[0];
  }

  int code(std::int64_t n, std::int64_t k) const {
    const std::int64_t flat = n * view_.cols + k;
    if (view_.format.bits() == 8) return codes_[static_cast<std::size_t>(flat)];
    const int byte = codes_[static_cast<std::size_t>(flat / 2)];
    const bool high = (flat % 2 == 0) == view_.format.flat();
    return high ? byte >> 4 : byte & 15;
  }

  std::mt19937_64 engine_;
  QuantView view_;
  Memory<std::uint8_t> codes_, scale_codes_, zeros_;
  Memory<float> scales_, nested_scales_, nested_map_, nested_offset_;
  Memory<bf16> narrow_scales_;
};

struct Product {
  std::vector<double> y;
  double size = 0;  // of a sum whose terms have any sign
};

Product product(const std::vector<double>& x, const RandomWeight& w, std::int64_t m) {
  const std::int64_t N = w.view().rows, K = w.view().cols;
  std::vector<double> values;
  for (std::int64_t i = 0; i < N * K; ++i) values.push_back(w.value(i / K, i % K));
  Product out;
  for (std::int64_t i = 0; i < m * N; ++i) {
    double sum = 0, squares = 0;
    for (std::int64_t k = 0; k < K; ++k) {
      const double term =
          x[static_cast<std::size_t>(i / N * K + k)] * values[static_cast<std::size_t>(i % N * K + k)];
      sum += term;
      squares += term * term;
    }
    out.y.push_back(sum);
    out.size = std::max(out.size, std::sqrt(squares));
  }
  return out;
}

bool runs_here(const QuantView& w, std::int64_t rows) {
  return has_quant_matmul(w, rows, test::test_device());
}

template <class T>
class QuantMatmul : public ::testing::Test {};
using Inputs = ::testing::Types<float, bf16>;
TYPED_TEST_SUITE(QuantMatmul, Inputs);

template <class T>
void expect_product(const RandomWeight& w, std::int64_t m, const std::string& what) {
  const std::int64_t N = w.view().rows, K = w.view().cols;
  Array<T> x = Array<T>::gapped({m, K}, 16 - K % 8).randomize(static_cast<std::uint64_t>(m)),
           y = Array<T>::gapped({m, N}, 16 - N % 8);
  std::fill(y.data().begin(), y.data().end(), T(77.0f));
  quant_matmul<T>(test_stream(), x.in(), w.view(), y.view());
  const Product want = product(x.values(), w, m);
  EXPECT_LE(normalized_error(y.values(), want.y, want.size), tolerance<T>()) << what << ", " << m << " rows";
  const std::int64_t stride = y.view().strides[0];
  for (std::int64_t i = 0; i + 1 < m; ++i) {
    for (std::int64_t gap = N; gap < stride; ++gap)
      ASSERT_EQ(static_cast<float>(y.data()[static_cast<std::size_t>(i * stride + gap)]), 77)
          << "gap written";
  }
}

TYPED_TEST(QuantMatmul, EveryFormatAndNumberOfRows) {
  for (const char* name : kFormats) {
    const WeightFormat format = parse_weight_format(name);
    const std::int64_t group = std::max<std::int64_t>(32, format.group);
    for (const auto& [n, groups] : {std::pair<std::int64_t, std::int64_t>{1, 1}, {37, 3}, {130, 8}}) {
      const RandomWeight w(format, n, groups * group, static_cast<std::uint64_t>(n));
      for (const std::int64_t m : {1, 2, 3, 4, 5, 6, 7, 8, 9, 17, 64}) {
        if (m > 8 && n > 37) continue;
        if (on_gpu() && !runs_here(w.view(), m)) continue;
        expect_product<TypeParam>(w, m, name);
      }
    }
  }
}

// Blocks of rows and of columns that are cut, and odd strides.
TYPED_TEST(QuantMatmul, ManyRowsOfOddShapes) {
  if (!on_gpu()) GTEST_SKIP();
  for (const char* name : kFormats) {
    const WeightFormat format = parse_weight_format(name);
    const std::int64_t group = std::max<std::int64_t>(32, format.group);
    for (const auto& [n, groups] : {std::pair<std::int64_t, std::int64_t>{301, 11}, {517, 40}}) {
      for (const DType scales : {DType::f32, DType::bf16}) {
        if (scales == DType::bf16 && format.codes != Codes::int4) continue;
        const RandomWeight w(format, n, groups * group, static_cast<std::uint64_t>(n), scales);
        for (const std::int64_t m : {1, 9, 16, 17, 33, 64}) {
          if (runs_here(w.view(), m)) expect_product<TypeParam>(w, m, name);
        }
      }
    }
  }
}

TYPED_TEST(QuantMatmul, Int4WithScalesInBf16) {
  for (const char* name : {"int4-g32", "int4-g64-zp", "int4-g128"}) {
    const WeightFormat format = parse_weight_format(name);
    const RandomWeight w(format, 21, 5 * format.group, 3, DType::bf16);
    for (const std::int64_t m : {1, 4}) {
      if (runs_here(w.view(), m)) expect_product<TypeParam>(w, m, name);
    }
  }
}

// Formats of 8 bits take any number of columns.
TYPED_TEST(QuantMatmul, OddColumns) {
  for (const char* name : {"int8", "fp8", "fp8-block"}) {
    for (const std::int64_t k : {1, 63, 65, 200, 391}) {
      const RandomWeight w(parse_weight_format(name), 131, k, 5);
      if (on_gpu() && !runs_here(w.view(), 2)) continue;
      expect_product<TypeParam>(w, 2, name);
    }
  }
}

// Groups that other programs choose.
TYPED_TEST(QuantMatmul, OtherGroups) {
  for (const std::int64_t group : {16, 40, 256, 384}) {
    const RandomWeight w({Codes::int4, group}, 19, 3 * group, 5);
    if (on_gpu() && !runs_here(w.view(), 2)) continue;
    expect_product<TypeParam>(w, 2, std::to_string(group));
  }
}

// A row's bits are the same wherever it stands and however many there are.
TEST(QuantMatmulBits, ManyRowsDoNotDependOnEachOther) {
  if (!on_gpu()) GTEST_SKIP();
  for (const char* name : kFormats) {
    const RandomWeight w(parse_weight_format(name), 301, 1408, 9);
    if (!runs_here(w.view(), 64)) continue;
    Array<bf16> x = Array<bf16>({64, 1408}).randomize(1), y({64, 301});
    quant_matmul<bf16>(test_stream(), x.in(), w.view(), y.view());
    const auto all = y.values();
    for (const std::int64_t rows : {1, 8, 9, 16, 17, 32, 33}) {
      const std::int64_t first = 64 - rows;
      Array<bf16> some({rows, 301});
      quant_matmul<bf16>(test_stream(), View<const bf16>(x.in().data + first * 1408, {rows, 1408}), w.view(),
                         some.view());
      const auto got = some.values();
      for (std::size_t i = 0; i < got.size(); ++i)
        ASSERT_EQ(got[i], all[static_cast<std::size_t>(first * 301) + i]) << name << ", " << rows << " rows";
    }
  }
}

// Tiles of few and of many strips, clusters of 1, 2, 4, 5 and 8 blocks, and more than one tile a block.
TEST(QuantMatmulCuts, EveryCluster) {
  if (!on_gpu()) GTEST_SKIP();
  for (const char* name : {"int4-g128", "nf4", "fp8-block"}) {
    const WeightFormat format = parse_weight_format(name);
    const std::int64_t box = format.bits() == 4 ? 256 : 128;  // columns of the least piece of a row
    for (const auto& [n, boxes] : {std::pair<std::int64_t, std::int64_t>{2003, 1},
                                   {9001, 3},
                                   {3001, 4},
                                   {4099, 15},
                                   {2049, 16},
                                   {1025, 9},
                                   {35001, 1}}) {
      const RandomWeight w(format, n, boxes * box - (boxes > 1 ? box / 2 : 0), static_cast<std::uint64_t>(n));
      for (const std::int64_t m : {9, 33}) {
        if (runs_here(w.view(), m)) expect_product<bf16>(w, m, name);
      }
    }
  }
}

// Products that begin while the one ahead, whose output they read and which reads theirs, still runs.
TEST(QuantMatmulBits, EarlyOrNot) {
  constexpr std::int64_t kSide = 1408;
  for (const char* name : {"int8", "fp8-block", "nf4-dq", "int4-g32-zp", "int4-g128"}) {
    const RandomWeight w(parse_weight_format(name), kSide, kSide, 9);
    for (const std::int64_t m : {9, 31, 64}) {
      if (!runs_here(w.view(), m)) continue;
      const auto chain = [&](bool early) {
        Array<bf16> x = Array<bf16>({m, kSide}).randomize(1), y({m, kSide});
        const View<bf16> from = x.view(), to = y.view();
        for (int i = 0; i < 3; ++i) {
          quant_matmul<bf16>(test_stream(), x.in(), w.view(), to, early);
          quant_matmul<bf16>(test_stream(), y.in(), w.view(), from, early);
        }
        return x.values();
      };
      const auto got = chain(true), want = chain(false);
      ASSERT_EQ(std::memcmp(got.data(), want.data(), want.size() * sizeof(want[0])), 0)
          << name << ", " << m << " rows";
    }
  }
}

// A row's result does not depend on the rows beside it: decoding a batch is decoding each alone.
TYPED_TEST(QuantMatmul, RowsDoNotDependOnEachOther) {
  for (const char* name : kFormats) {
    const RandomWeight w(parse_weight_format(name), 41, 384, 9);
    for (const std::int64_t rows : {8, 33, 64}) {
      if (on_gpu() && !runs_here(w.view(), rows)) continue;
      Array<TypeParam> x = Array<TypeParam>({rows, 384}).randomize(1), y({rows, 41}), one({1, 41});
      quant_matmul<TypeParam>(test_stream(), x.in(), w.view(), y.view());
      const auto all = y.values();
      for (std::int64_t row = 0; row < rows; ++row) {
        const View<const TypeParam> alone(x.in().data + row * 384, {1, 384});
        quant_matmul<TypeParam>(test_stream(), alone, w.view(), one.view());
        const auto got = one.values();
        for (std::size_t i = 0; i < got.size(); ++i)
          ASSERT_EQ(got[i], all[static_cast<std::size_t>(row * 41) + i]) << name << ", row " << row;
      }
    }
  }
}

TYPED_TEST(QuantMatmul, SameBitsOnAnyNumberOfThreads) {
  const RandomWeight w(parse_weight_format("nf4-dq"), 1003, 320, 9);
  expect_same_bits_on_threads([&] {
    Array<TypeParam> x = Array<TypeParam>({3, 320}).randomize(1), y({3, 1003});
    quant_matmul<TypeParam>(test_stream(), x.in(), w.view(), y.view());
    return y.values();
  });
}

// Nothing but codes that are NaN makes a NaN, and those do.
TEST(QuantMatmulCodes, EveryFp8Code) {
  Memory<std::uint8_t> codes(256 * 64);
  for (std::size_t i = 0; i < 256; ++i) codes[i * 64 + i % 64] = static_cast<std::uint8_t>(i);
  Memory<float> scales(256, 1.0f);
  QuantView w;
  w.format = parse_weight_format("fp8");
  w.rows = 256;
  w.cols = 64;
  w.codes = codes.data();
  w.scales = scales.data();
  Array<float> x({1, 64}), y({1, 256});
  std::fill(x.data().begin(), x.data().end(), 1.0f);
  if (!runs_here(w, 1)) GTEST_SKIP();
  quant_matmul<float>(test_stream(), x.in(), w, y.view());
  const auto got = y.values();
  for (int code = 0; code < 256; ++code) {
    const int exponent = code >> 3 & 15, mantissa = code & 7;
    const double magnitude = exponent == 0 ? mantissa / 512.0 : std::ldexp(1 + mantissa / 8.0, exponent - 7);
    const double value = got[static_cast<std::size_t>(code)];
    if ((code & 127) == 127) {
      EXPECT_TRUE(std::isnan(value)) << code;
    } else {
      EXPECT_EQ(value, (code & 128) != 0 ? -magnitude : magnitude) << code;
    }
  }
}

TEST(QuantMatmulLimits, WhatItTakes) {
  const Device device = test::test_device();
  const RandomWeight nf4(parse_weight_format("nf4"), 4, 64, 1);
  EXPECT_TRUE(has_quant_matmul(nf4.view(), 1, device));
  EXPECT_FALSE(has_quant_matmul(nf4.view(), kQuantRows + 1, device));
  QuantView across = nf4.view();  // blocks of 64 run on into the next row
  across.rows = 2;
  across.cols = 96;
  EXPECT_FALSE(has_quant_matmul(across, 1, device));
  Array<float> x({1, 96}), y({1, 2}), wrong({1, 3});
  EXPECT_NE(message_of<Error>([&] {
              quant_matmul<float>(test_stream(), x.in(), across, y.view());
            }).find("[1, 96] times nf4 [2, 96]"),
            std::string::npos);
  EXPECT_THROW(quant_matmul<float>(test_stream(), x.in(), nf4.view(), wrong.view()), Error);
}

// Rows of x that no cluster of blocks holds.
TEST(QuantMatmulLimits, EndlessRows) {
  for (const char* name : {"int8", "nf4"}) {
    const RandomWeight w(parse_weight_format(name), 2, std::int64_t{1} << 20, 5);
    EXPECT_TRUE(runs_here(w.view(), 2));
    expect_product<bf16>(w, 2, name);
    if (runs_here(w.view(), 9)) expect_product<bf16>(w, 9, name);  // where there are tensor maps
  }
}

TEST(QuantMatmulMeta, StatesItsWork) {
  const RandomWeight w(parse_weight_format("int4-g128"), 24, 256, 1);
  const LaunchRecord record = launched_on_meta([&](Stream& stream) {
    quant_matmul<bf16>(stream, meta_view<const bf16>({3, 256}), w.view(), meta_view<bf16>({3, 24}));
  });
  EXPECT_STREQ(record.op, "quant_matmul");
  EXPECT_EQ(record.flops, 2.0 * 3 * 24 * 256);
  EXPECT_EQ(record.bytes, 24 * 128 + 24 * 2 * 4 + 2.0 * 3 * (256 + 24));
}

}  // namespace
}  // namespace ridge::kernels::testing
