// Weight formats: matrices [N, K] as codes and scales.
//
// name       bits  scales
// int8        8    f32 a row: w = q s                              (compressed-tensors int-quantized)
// fp8         8    f32 a row, e4m3fn codes                         (compressed-tensors float-quantized)
// fp8-block   8    f32 a tile of 128 x 128                         (the same; DeepSeek's weight_scale_inv)
// nf4, fp4    4    f32 a block of 64 elements of the flat matrix   (bitsandbytes; Dettmers et al., 2023)
// nf4-dq ...  4    the same, themselves 8-bit codes of blocks of 256, less their mean
// int4-gG     4    a group of G columns of a row: w = (q - 8) s    (compressed-tensors pack-quantized)
// int4-gG-zp  4    the same with a zero point of each group: w = (q - z) s
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "core/base/dtype.h"

namespace ridge::kernels {

enum class Codes : std::uint8_t { int8, fp8, int4, nf4, fp4 };

struct WeightFormat {
  Codes codes = Codes::int8;
  std::int64_t group = 0;     // elements of a row (nf4, fp4: of the flat matrix) that share a scale; 0: a row
  bool tiles = false;         // fp8: a scale has `group` rows too
  bool double_quant = false;  // nf4, fp4: scales are 8-bit codes
  bool zero_points = false;   // int4

  int bits() const { return codes == Codes::int8 || codes == Codes::fp8 ? 8 : 4; }
  /// Whether blocks run on from row to row.
  bool flat() const { return codes == Codes::nf4 || codes == Codes::fp4; }
  bool operator==(const WeightFormat&) const = default;
};

inline constexpr std::int64_t kTile = 128;         // of fp8-block
inline constexpr std::int64_t kFlatBlock = 64;     // of nf4 and fp4
inline constexpr std::int64_t kNestedBlock = 256;  // scales that share one of the second level

/// As in the table; "int4" is int4-g128. A UserError lists the names.
WeightFormat parse_weight_format(std::string_view name);
std::string name_of(const WeightFormat& format);

/// A UserError where a matrix `what` [rows, cols] cannot be cut into the format's groups.
void check_divides(const WeightFormat& format, std::int64_t rows, std::int64_t cols, std::string_view what);

std::int64_t code_bytes(const WeightFormat& format, std::int64_t rows, std::int64_t cols);
std::int64_t scale_count(const WeightFormat& format, std::int64_t rows, std::int64_t cols);
/// All that is stored of a matrix; `scale`: the dtype of int4's scales, others have f32.
std::int64_t stored_bytes(const WeightFormat& format, std::int64_t rows, std::int64_t cols, DType scale);

/// A matrix in a format, or a piece of one, that owns nothing. Pointers that a format has no use for are
/// null.
template <bool kConst>
struct BasicQuantView {
  template <class T>
  using Pointer = std::conditional_t<kConst, const T*, T*>;

  WeightFormat format = {};
  std::int64_t rows = 0, cols = 0;
  Pointer<std::uint8_t> codes = nullptr;  // row-major [N, K]; 4 bits: [N K / 2], rounded up. int4 has the
                                          // first of two in the low half, nf4 and fp4 in the high one
  Pointer<void> scales = nullptr;         // [N], [N, K / G], tiles [N / 128, K / 128], [N K / 64] rounded up
  DType scale_dtype = DType::f32;         // bf16 for some int4
  Pointer<std::uint8_t> zeros = nullptr;  // zero points [N, K / G], 0 to 15
  Pointer<std::uint8_t> scale_codes = nullptr;  // double_quant, in place of scales: [N K / 64]
  Pointer<float> nested_scales = nullptr;       // of the whole matrix: [whole blocks / 256], rounded up
  Pointer<float> nested_map = nullptr;          // [256]
  Pointer<float> nested_offset = nullptr;       // [1]
  // Where a piece lies in the whole matrix: block b of row r is block first_block + r * row_blocks + b there.
  std::int64_t first_block = 0;
  std::int64_t row_blocks = 0;

  std::int64_t row_bytes() const { return cols * format.bits() / 8; }
};
using QuantView = BasicQuantView<true>;
using QuantTarget = BasicQuantView<false>;

/// What must be read of the matrix: codes and scales.
double bytes_of(const QuantView& w);

}  // namespace ridge::kernels
