// A quantized matrix in memory that the device under test can address.
#pragma once

#include <string_view>

#include "kernels/quantize.h"
#include "tests/kernels/kernel_test.h"

namespace ridge::kernels::testing {

struct QuantizedArray {
  WeightFormat format;
  std::int64_t rows, cols, count;  // count: scales
  Memory<std::uint8_t> codes, zeros, scale_codes;
  Memory<float> scales, nested_scales, map, offset;
  Memory<bf16> narrow_scales;  // in place of `scales`
  bool narrow;

  QuantizedArray(std::string_view name, std::int64_t n, std::int64_t k, bool bf16_scales = false)
      : format(parse_weight_format(name)),
        rows(n),
        cols(k),
        count(scale_count(format, n, k)),
        codes(static_cast<std::size_t>(code_bytes(format, n, k)), std::uint8_t{0xEE}),
        zeros(static_cast<std::size_t>(count)),
        scale_codes(static_cast<std::size_t>(count)),
        scales(static_cast<std::size_t>(count)),
        nested_scales(static_cast<std::size_t>((count + kNestedBlock - 1) / kNestedBlock)),
        map(256),
        offset(1),
        narrow_scales(static_cast<std::size_t>(count)),
        narrow(bf16_scales) {}

  template <class V>
  V as() {
    wait_for_device();
    V v;
    v.format = format;
    v.rows = rows;
    v.cols = cols;
    v.codes = codes.data();
    v.scales = narrow ? static_cast<void*>(narrow_scales.data()) : scales.data();
    v.scale_dtype = narrow ? DType::bf16 : DType::f32;
    v.zeros = zeros.data();
    v.scale_codes = scale_codes.data();
    v.nested_scales = nested_scales.data();
    v.nested_map = map.data();
    v.nested_offset = offset.data();
    v.row_blocks = format.flat() && cols % format.group == 0 ? cols / format.group : 0;
    return v;
  }
  QuantView view() { return as<QuantView>(); }
  QuantTarget target() { return as<QuantTarget>(); }

  std::uint8_t code(std::int64_t i) const {
    if (format.bits() == 8) return codes[static_cast<std::size_t>(i)];
    const bool high = (i % 2 == 0) == format.flat();
    return (codes[static_cast<std::size_t>(i / 2)] >> (high ? 4 : 0)) & 15;
  }
  float kept_scale(std::int64_t i) const {
    return narrow ? static_cast<float>(narrow_scales[static_cast<std::size_t>(i)])
                  : scales[static_cast<std::size_t>(i)];
  }
  /// The scale that element i has, by place; of double_quant from its codes, in two roundings.
  float scale_of_element(std::int64_t i) const {
    const std::int64_t row = i / cols, col = i % cols;
    std::int64_t at = row;
    if (format.flat()) at = i / kFlatBlock;
    if (format.codes == Codes::int4) at = i / format.group;
    if (format.tiles) at = row / kTile * ((cols + kTile - 1) / kTile) + col / kTile;
    if (!format.double_quant) return kept_scale(at);
    const auto s = static_cast<std::size_t>(at);
    const volatile float part = map[scale_codes[s]] * nested_scales[s / kNestedBlock];
    return part + offset[0];
  }
  int zero_of_element(std::int64_t i) const {
    return format.zero_points ? zeros[static_cast<std::size_t>(i / format.group)] : 8;
  }
};

/// What the formats' definitions say that a code stands for, written out once more.
inline double code_value(const WeightFormat& format, std::uint8_t code, int zero) {
  static const double kNf4[] = {-1.0,
                                -0.6961928009986877,
                                -0.5250730514526367,
                                -0.39491748809814453,
                                -0.28444138169288635,
                                -0.18477343022823334,
                                -0.09105003625154495,
                                0.0,
                                0.07958029955625534,
                                0.16093020141124725,
                                0.24611230194568634,
                                0.33791524171829224,
                                0.44070982933044434,
                                0.5626170039176941,
                                0.7229568362236023,
                                1.0};
  static const float kFp4[] = {0.0f, 1 / 192.0f, 2 / 3.0f, 1.0f, 1 / 3.0f, 0.5f, 1 / 6.0f, 0.25f};
  switch (format.codes) {
    case Codes::nf4:
      return kNf4[code];
    case Codes::fp4:
      return (code & 8) != 0 ? -double{kFp4[code & 7]} : double{kFp4[code]};
    case Codes::int4:
      return code - zero;
    case Codes::int8:
      return code < 128 ? code : code - 256;
    case Codes::fp8:
      break;
  }
  const int exponent = (code >> 3) & 15, mantissa = code & 7;
  const double sign = (code & 128) != 0 ? -1 : 1;
  if (exponent == 15 && mantissa == 7) return std::nan("");
  return sign * (exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10));
}

}  // namespace ridge::kernels::testing
