#include "core/quantized_weight.h"

#include <gtest/gtest.h>

#include <cstring>

#include "core/base/error.h"
#include "kernels/quantize.h"
#include "tests/test_device.h"

namespace ridge {
namespace {

using kernels::parse_weight_format;
using test::test_device;

constexpr const char* kFormats[] = {"int8", "fp8",    "fp8-block", "nf4",      "nf4-dq",
                                    "fp4",  "fp4-dq", "int4-g32",  "int4-g64", "int4-g128-zp"};

// 300 x 384: 1800 blocks of 64, so that the second level has 8 of its own; tiles of which the last are
// partial.
constexpr std::int64_t kRows = 300, kCols = 384;

Tensor random_weight(std::int64_t rows, std::int64_t cols, DType dtype = DType::f32) {
  Tensor w = Tensor::empty({rows, cols}, DType::f32, Device::cpu);
  auto* data = static_cast<float*>(w.data());
  std::uint32_t seed = 12345;
  for (std::int64_t i = 0; i < rows * cols; ++i) {
    seed = seed * 1664525u + 1013904223u;
    data[i] = static_cast<float>(seed >> 8) * 0x1p-24f - 0.4f + static_cast<float>(i / 64 % 3);
  }
  return w.to(dtype).on(test_device());
}

std::vector<float> values_of(const Tensor& t) {
  const Tensor host = t.on(Device::cpu).contiguous_copy();
  const auto* data = static_cast<const float*>(host.data());
  return {data, data + host.numel()};
}

void expect_same(const Tensor& got, const Tensor& want, const std::string& what) {
  ASSERT_EQ(got.shape(), want.shape()) << what;
  const std::vector<float> a = values_of(got), b = values_of(want);
  ASSERT_EQ(std::memcmp(a.data(), b.data(), a.size() * sizeof(float)), 0) << what;
}

TEST(QuantizedWeight, HoldsWhatTheFormatSays) {
  for (const char* name : kFormats) {
    const auto format = parse_weight_format(name);
    QuantizedWeight w = quantize(random_weight(kRows, kCols, DType::bf16), format);
    EXPECT_EQ(w.shape, (Shape{kRows, kCols}));
    EXPECT_EQ(w.bytes(),
              kernels::stored_bytes(format, kRows, kCols,
                                    format.codes == kernels::Codes::int4 ? DType::bf16 : DType::f32))
        << name;
    EXPECT_EQ(w.scales.defined(), !format.double_quant);
    std::size_t parts = 2;
    if (format.zero_points) parts = 3;
    if (format.double_quant) parts = 5;
    EXPECT_EQ(w.parts().size(), parts) << name;
    const QuantizedWeight host = w.on(Device::cpu);
    EXPECT_EQ(host.codes.device(), Device::cpu);
    expect_same(dequantize(host, DType::f32), dequantize(w, DType::f32), name);
  }
}

TEST(QuantizedWeight, PiecesAreTheWholesParts) {
  struct Cut {
    int dim;
    std::int64_t begin, end;
  };
  for (const char* name : kFormats) {
    const QuantizedWeight whole = quantize(random_weight(kRows, kCols), parse_weight_format(name));
    const Tensor want = dequantize(whole, DType::f32);
    for (const Cut c : {Cut{0, 0, 128}, Cut{0, 128, 300}, Cut{0, 0, 300}, Cut{1, 0, 128}, Cut{1, 128, 384}}) {
      const QuantizedWeight piece = whole.piece(c.dim, c.begin, c.end);
      EXPECT_EQ(piece.shape[c.dim], c.end - c.begin);
      expect_same(dequantize(piece, DType::f32), want.sliced(c.dim, c.begin, c.end), name);
    }
    // A piece of a piece, along the other dimension.
    const QuantizedWeight corner = whole.piece(1, 128, 384).piece(0, 128, 256).piece(1, 128, 256);
    expect_same(dequantize(corner, DType::f32), want.sliced(0, 128, 256).sliced(1, 256, 384), name);
  }
}

TEST(QuantizedWeight, RowsBeginAnywhereButInTiles) {
  for (const char* name : kFormats) {
    const QuantizedWeight whole = quantize(random_weight(kRows, kCols), parse_weight_format(name));
    if (whole.format.tiles) {
      EXPECT_THROW((void)whole.piece(0, 7, 150), UserError);
      EXPECT_THROW((void)whole.piece(1, 0, 100), UserError);
      continue;
    }
    const Tensor want = dequantize(whole, DType::f32);
    expect_same(dequantize(whole.piece(0, 7, 151), DType::f32), want.sliced(0, 7, 151), name);
  }
}

TEST(QuantizedWeight, ScalesOfAPieceAreTheWholes) {
  const QuantizedWeight whole = quantize(random_weight(kRows, kCols), parse_weight_format("nf4-dq"));
  const auto scales_of = [](const QuantizedWeight& w) {
    const Tensor out = Tensor::empty({w.shape[0], w.shape[1] / 64}, DType::f32, w.codes.device());
    kernels::dequantize_scales(current_stream(out.device()), w.view(),
                               View<float>(static_cast<float*>(out.data()), {out.numel()}));
    return out;
  };
  const Tensor want = scales_of(whole);
  expect_same(scales_of(whole.piece(0, 45, 130)), want.sliced(0, 45, 130), "rows");
  expect_same(scales_of(whole.piece(1, 64, 320)), want.sliced(1, 1, 5), "columns");
}

TEST(QuantizedWeight, CannotBeCutWithinAGroup) {
  EXPECT_THROW((void)quantize(random_weight(8, 128), parse_weight_format("nf4")).piece(1, 0, 32), UserError);
  EXPECT_THROW((void)quantize(random_weight(8, 128), parse_weight_format("int4-g64")).piece(1, 32, 128),
               UserError);
  // Blocks run across rows.
  EXPECT_THROW((void)quantize(random_weight(8, 96), parse_weight_format("nf4")).piece(0, 0, 4), UserError);
}

// Where a row is one group its scale looks like that of a whole row.
TEST(QuantizedWeight, CannotBeCutWithinTheOnlyGroupOfARow) {
  const std::pair<const char*, std::int64_t> kOne[] = {
      {"nf4", 64},      {"nf4-dq", 64},     {"fp4", 64},    {"int4-g32", 32},
      {"int4-g64", 64}, {"int4-g128", 128}, {"fp4-dq", 64}, {"int4-g32-zp", 32}};
  for (const auto& [name, cols] : kOne) {
    const QuantizedWeight whole = quantize(random_weight(6, cols), parse_weight_format(name));
    const Tensor want = dequantize(whole, DType::f32);
    for (const std::int64_t begin : {std::int64_t{0}, cols / 2}) {
      try {
        (void)whole.piece(1, begin, begin + cols / 2);
        ADD_FAILURE() << name << " is cut at " << begin;
      } catch (const UserError& error) {
        const std::string message = error.what();
        EXPECT_NE(message.find(fmt::format("cut at {} of {}", cols / 2, cols)), std::string::npos) << message;
        EXPECT_NE(message.find("within a group"), std::string::npos) << message;
      }
    }
    expect_same(dequantize(whole.piece(0, 2, 5), DType::f32), want.sliced(0, 2, 5), name);
  }
}

TEST(QuantizedWeight, TheOnlyScaleOfARowOrATileHoldsForAnyColumns) {
  for (const char* name : {"int8", "fp8", "fp8-block"}) {
    const QuantizedWeight whole = quantize(random_weight(100, 96), parse_weight_format(name));
    const Tensor want = dequantize(whole, DType::f32);
    expect_same(dequantize(whole.piece(1, 48, 96), DType::f32), want.sliced(1, 48, 96), name);
    expect_same(dequantize(whole.piece(0, 50, 100), DType::f32), want.sliced(0, 50, 100), name);
  }
}

TEST(QuantizedWeight, RefusesAShapeThatGroupsDoNotDivide) {
  try {
    (void)quantize(random_weight(4, 96), parse_weight_format("int4-g64"));
    ADD_FAILURE() << "no error";
  } catch (const UserError& error) {
    EXPECT_NE(std::string(error.what()).find("[4, 96]"), std::string::npos) << error.what();
  }
}

TEST(QuantizedWeight, OddShapesComeBack) {
  for (const char* name : {"nf4", "nf4-dq", "fp4", "int8", "fp8", "fp8-block"}) {
    const Tensor w = random_weight(7, 93);
    const std::vector<float> want = values_of(w);
    const std::vector<float> got = values_of(dequantize(quantize(w, parse_weight_format(name)), DType::f32));
    ASSERT_EQ(got.size(), want.size());
    for (std::size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], want[i], 0.5) << name << " " << i;
  }
}

TEST(QuantizedWeight, TakesEveryComputeTypeAndAnyRows) {
  const Tensor w = random_weight(64, 256);
  for (const char* name : kFormats) {
    const auto format = parse_weight_format(name);
    const Tensor want = dequantize(quantize(w, format), DType::f32);
    expect_same(dequantize(quantize(w.to(DType::f64), format), DType::f32), want, name);
    const Tensor wide = random_weight(64, 512);  // rows that lie apart
    const Tensor part = wide.sliced(1, 256, 512);
    expect_same(dequantize(quantize(part, format), DType::f32),
                dequantize(quantize(part.contiguous_copy(), format), DType::f32), name);
  }
}

TEST(QuantizedWeight, MetaHasShapesAlone) {
  const QuantizedWeight w =
      quantize(Tensor::empty({256, 512}, DType::bf16, Device::meta), parse_weight_format("nf4-dq"));
  EXPECT_EQ(w.codes.shape(), (Shape{256, 256}));
  EXPECT_EQ(w.scale_codes.shape(), (Shape{256, 8}));
  EXPECT_EQ(w.nested_scales.shape(), (Shape{8}));
  const QuantizedWeight piece = w.piece(0, 64, 128);
  EXPECT_EQ(piece.first_block, 64 * 8);
  EXPECT_EQ(dequantize(piece, DType::bf16).shape(), (Shape{64, 512}));
}

}  // namespace
}  // namespace ridge
