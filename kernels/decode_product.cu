// Which kernel takes a product of few rows.
#include "kernels/decode_product.h"

#include <bit>
#include <limits>

#include "kernels/decode_product_params.cuh"
#include "kernels/device/vec.cuh"
#include "kernels/formats/codes.h"

namespace ridge::kernels::cuda {
namespace {

using device::DenseCodes;
using device::FlatLines;
using device::Fp8Halves;
using device::Int4Bytes;
using device::Int4Codes;
using device::Int8Bytes;

constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max() / 2;
constexpr std::int64_t kRowsPastTheEnd = 1 << 16;  // more than a turn of all blocks
constexpr std::int64_t kMostColumns = std::int64_t{1} << 24;

bool aligned(const void* at) { return reinterpret_cast<std::uintptr_t>(at) % 16 == 0; }
std::int64_t place_of(const void* at) {
  return static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(at));
}
int log2_of(std::int64_t power) { return std::countr_zero(static_cast<std::uint64_t>(power)); }

template <int kWords, class F>
bool visit_int4(const QuantView& w, const F& f) {
  const bool narrow = w.scale_dtype == DType::bf16;
  if (w.format.zero_points)
    return narrow ? f(Int4Codes<kWords, true, true>()) : f(Int4Codes<kWords, true, false>());
  return narrow ? f(Int4Bytes<kWords, true>()) : f(Int4Bytes<kWords, false>());
}

/// What f(Format()) is for the kernels' name of a format; false where there is none.
template <class F>
bool visit_coded(const QuantView& w, const F& f) {
  const WeightFormat& format = w.format;
  if (format.codes == Codes::int8) return f(Int8Bytes());
  if (format.codes == Codes::fp8) return format.tiles ? f(Fp8Halves<false>()) : f(Fp8Halves<true>());
  if (format.flat()) return format.double_quant ? f(FlatLines<true>()) : f(FlatLines<false>());
  if (!std::has_single_bit(static_cast<std::uint64_t>(format.group)) || format.group < 32) return false;
  if (format.group == 32) return visit_int4<1>(w, f);
  if (format.group == 64) return visit_int4<2>(w, f);
  return visit_int4<4>(w, f);
}

template <class F>
bool visit(const DecodeWeight& w, const F& f) {
  if (const auto* coded = std::get_if<QuantView>(&w)) return visit_coded(*coded, f);
  return f(DenseCodes());
}

void set_matrix(DecodeParams& p, int which, const View<const bf16>& w) {
  p.codes_of[which] = reinterpret_cast<const std::uint8_t*>(w.data);
}
void set_matrix(DecodeParams& p, int which, const QuantView& w) {
  p.codes_of[which] = w.codes;
  p.scales[which] = w.format.double_quant ? w.scale_codes : static_cast<const std::uint8_t*>(w.scales);
  p.zeros[which] = w.format.zero_points ? w.zeros : nullptr;
  p.nested[which] = w.nested_scales;
  p.map[which] = w.nested_map;
  p.offset[which] = w.nested_offset;
  p.first_block[which] = w.first_block;
}
void set_scales(DecodeParams& p, const QuantView& w, int unit_columns) {
  const bool by_row = w.format.group == 0;
  p.across = by_row ? 1 : static_cast<int>(device::ceil_div(w.cols, w.format.group));
  p.row_blocks = static_cast<int>(w.row_blocks);
  p.row_shift = w.format.tiles ? log2_of(kTile) : 0;
  p.unit_shift = by_row ? 30 : log2_of(w.format.group / unit_columns);
}

/// What begins `rows` below the first, or where it does.
template <class Format>
void set_second(DecodeParams& p, std::int64_t rows) {
  p.codes_of[1] = p.codes_of[0] + rows * p.row_bytes;
  p.scales[1] = p.scales[0];
  p.zeros[1] = p.zeros[0];
  if constexpr (Piece<Format>::kTiles) {
    p.first_row[1] = rows;  // which may lie within a tile
  } else if (p.scales[0] != nullptr) {
    p.scales[1] += rows * p.across * Format::kScaleBytes;
  }
  if (p.zeros[1] != nullptr) p.zeros[1] += rows * p.across;
  p.nested[1] = p.nested[0];
  p.map[1] = p.map[0];
  p.offset[1] = p.offset[0];
  p.first_block[1] = p.first_block[0] + rows * p.row_blocks;
  p.bias[1] = p.bias[0] == nullptr ? nullptr : p.bias[0] + rows;
}

template <class Format>
DecodeParams params_of(const DecodeWeight& weight, const ProductSteps& steps) {
  DecodeParams p{};
  std::int64_t rows = 0, cols = 0;
  if constexpr (Format::kDense) {
    const auto& w = std::get<View<const bf16>>(weight);
    rows = w.dim(0), cols = w.dim(1);
    set_matrix(p, 0, w);
    p.row_bytes = w.strides[0] * static_cast<std::int64_t>(sizeof(bf16));
  } else {
    const auto& w = std::get<QuantView>(weight);
    rows = w.rows, cols = w.cols;
    set_matrix(p, 0, w);
    p.row_bytes = w.row_bytes();
    set_scales(p, w, Format::Layout::kColumns);
    const auto values = w.format.codes == Codes::nf4 ? nf4_values() : fp4_values();
    for (std::size_t i = 0; i < values.size(); ++i) p.values[i] = bf16(values[i]).bits;
  }
  p.end = steps.end;
  p.early = steps.early;
  p.bias[0] = steps.bias_N.data;
  if (steps.up_NK.has_value()) {
    std::visit([&](const auto& up) { set_matrix(p, 1, up); }, *steps.up_NK);
    p.bias[1] = steps.up_bias_N.data;
  } else {
    if (p.gated()) rows /= 2;
    set_second<Format>(p, p.gated() ? rows : 0);
  }
  p.outputs = static_cast<int>(rows);
  p.columns = static_cast<int>(cols);
  p.units = p.columns / Format::Layout::kColumns;
  p.used_bytes = p.units * Format::Layout::kBytes;
  p.pieces = static_cast<int>(device::ceil_div(p.used_bytes, kPieceBytes));
  p.rows = p.gated() ? kTileRows / 2 : kTileRows;
  p.tiles = p.outputs / p.rows;
  p.four = 4 * p.row_bytes;
  p.codes = p.codes_of[0];
  p.second = p.gated() ? place_of(p.codes_of[1]) - place_of(p.codes) : kTileRows / 2 * p.row_bytes;
  p.norm = steps.norm_K.data;
  p.eps = static_cast<float>(steps.eps);
  p.of_column = 1.0f / static_cast<float>(p.columns);
  return p;
}

/// Whole tiles and units, at addresses that can be copied from.
template <class Format>
bool takes(const DecodeParams& p) {
  const bool whole = p.outputs > 0 && p.outputs % kTileRows == 0 && p.columns % Format::Layout::kColumns == 0;
  bool places = p.row_bytes % 16 == 0;
  for (int i = 0; i < 2; ++i)
    places = places && aligned(p.codes_of[i]) && aligned(p.scales[i]) && aligned(p.zeros[i]);
  constexpr int kStep = std::clamp(Piece<Format>::kScaleBytes, 1, 16);
  constexpr int kZeros = std::max(1, Piece<Format>::kZeroBytes);
  const bool steps = p.across * Format::kScaleBytes % kStep == 0 && p.across % kZeros == 0;
  const bool groups = Format::kScaledAtEnd || p.unit_shift == (Piece<Format>::kTiles ? 1 : 0);
  bool nested = !Format::kNested || p.across <= kNestedBlock;
  for (const std::int64_t first : p.first_block)  // numbers of blocks are of 32 bits, a turn past the end too
    nested = nested && (!Format::kNested || first + (p.outputs + kRowsPastTheEnd) * p.row_blocks < kMost);
  return whole && places && steps && groups && nested && aligned(p.norm);
}

/// Of `rows`, how many a block's memory holds x of; 0: not one.
template <class Format>
int rows_at_once(DecodeParams p, int rows) {
  for (p.m = rows; p.m > 0 && !fits_decode_product<Format>(p);) --p.m;
  return p.m;
}

/// In as few passes over the weights as can be, of about as many rows each; false where there is no kernel.
template <class Format>
bool multiply(Stream& stream, DecodeParams p, const View<const bf16>& x, const View<bf16>& y) {
  const auto rows = static_cast<int>(x.dim(0));
  p.x_stride = rows == 1 ? 0 : x.strides[0];
  p.y_stride = rows == 1 ? 0 : y.strides[0];
  const int most = rows_at_once<Format>(p, rows);
  if (most == 0 || !takes<Format>(p) || !device::aligned_rows(x.data, p.x_stride)) return false;
  const auto passes = device::ceil_div(rows, most);
  const auto each = static_cast<int>(device::ceil_div(rows, passes));
  for (int row = 0; row < rows; row += each) {
    p.m = std::min(each, rows - row);
    p.x = x.data + row * p.x_stride;
    p.y = y.data + row * p.y_stride;
    if (!launch_decode_product<Format>(device::native(stream), p)) return false;
  }
  return true;
}

bool small(const DecodeWeight& w, const ProductSteps& steps) {
  const bool normed = steps.norm_K.ndim() == 1;  // its data are null where it is planned
  const std::int64_t most = normed ? kNormPacks * kOfPacks : kMostColumns;
  if (const auto* coded = std::get_if<QuantView>(&w)) return coded->rows < kMost && coded->cols <= most;
  const auto& dense = std::get<View<const bf16>>(w);
  return dense.dim(0) < kMost && dense.dim(1) <= most && dense.rows_dense();
}

/// Whether the up projection is another matrix of the same kind.
bool alike(const DecodeWeight& w, const ProductSteps& steps) {
  if (!steps.up_NK.has_value()) return true;
  if (steps.end != ProductEnd::swiglu || steps.up_NK->index() != w.index()) return false;
  if (const auto* a = std::get_if<QuantView>(&w)) {
    const auto& b = std::get<QuantView>(*steps.up_NK);
    return a->format == b.format && a->scale_dtype == b.scale_dtype && a->rows == b.rows &&
           a->cols == b.cols && a->row_blocks == b.row_blocks;
  }
  const auto &a = std::get<View<const bf16>>(w), &b = std::get<View<const bf16>>(*steps.up_NK);
  return a.shape == b.shape && a.strides[0] == b.strides[0];
}

}  // namespace

bool has_decode_product(const DecodeWeight& w, std::int64_t rows, const ProductSteps& steps) {
  if (rows < 1 || rows > kDecodeRows || !small(w, steps) || !alike(w, steps)) return false;
  return visit(w, [&](auto format) {
    using Format = decltype(format);
    const DecodeParams p = params_of<Format>(w, steps);
    return takes<Format>(p) && rows_at_once<Format>(p, 1) == 1;
  });
}

void decode_product(Stream& stream, View<const bf16> x, const DecodeWeight& w, const ProductSteps& steps,
                    View<bf16> y) {
  if (y.numel() == 0) return;
  const bool done = visit(w, [&](auto format) {
    using Format = decltype(format);
    return multiply<Format>(stream, params_of<Format>(w, steps), x, y);
  });
  if (!done) fail("decode_product: no kernel for {} rows of this matrix: ask has_decode_product", x.dim(0));
}

}  // namespace ridge::kernels::cuda
