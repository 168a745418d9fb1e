// Which kernel takes a product, and with how many blocks to a cluster.
#include "kernels/quant_matmul.h"

#include <algorithm>
#include <bit>
#include <limits>

#include "kernels/device/vec.cuh"
#include "kernels/formats/codes.h"
#include "kernels/quant_gemv_cuda.h"
#include "kernels/quant_mma_params.cuh"
#include "kernels/quant_wgmma_cuda.h"

namespace ridge::kernels::cuda {
namespace {

using device::ByteCodes;
using device::FlatCodes;
using device::Int4Codes;

constexpr int kSharedBytes = 227 * 1024;  // of a block
constexpr int kXBytes = 96 * 1024;        // of x that a block would rather not exceed: all blocks read theirs
constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max() / 2;
constexpr std::int64_t kPlainRows = 8;  // that the plain kernel takes before dequantizing pays

template <int kWords, class F>
void visit_int4(const QuantView& w, const F& f) {
  const bool narrow = w.scale_dtype == DType::bf16;
  if (w.format.zero_points) {
    narrow ? f(Int4Codes<kWords, true, true>()) : f(Int4Codes<kWords, true, false>());
  } else {
    narrow ? f(Int4Codes<kWords, false, true>()) : f(Int4Codes<kWords, false, false>());
  }
}

// Two blocks at a time where both have a scale at an even place.
template <class F>
void visit_flat(const QuantView& w, const F& f) {
  const auto address = reinterpret_cast<std::uintptr_t>(w.format.double_quant ? w.scale_codes : w.scales);
  const bool even =
      w.cols % (2 * kFlatBlock) == 0 && address % 8 == 0 && w.first_block % 2 == 0 && w.row_blocks % 2 == 0;
  if (w.format.double_quant) {
    even ? f(FlatCodes<true, 2>()) : f(FlatCodes<true, 1>());
  } else {
    even ? f(FlatCodes<false, 2>()) : f(FlatCodes<false, 1>());
  }
}

/// Calls f(Format()) for the kernels' name of a format; false where there is none.
template <class F>
bool visit_mma_format(const QuantView& w, const F& f) {
  const WeightFormat& format = w.format;
  const std::int64_t group = format.group;
  if (format.codes == Codes::int8) return f(ByteCodes<false>()), true;
  if (format.codes == Codes::fp8) return f(ByteCodes<true>()), true;
  if (format.flat()) return visit_flat(w, f), true;
  if (!std::has_single_bit(static_cast<std::uint64_t>(group)) || group < 32) return false;
  if (group == 32) return visit_int4<1>(w, f), true;
  if (group == 64) return visit_int4<2>(w, f), true;
  return visit_int4<4>(w, f), true;
}

/// Rows that are whole groups and whole bytes.
bool has_plain(const QuantView& w) {
  if (w.cols <= 0 || w.cols >= kMost) return false;
  if (w.format.bits() == 8) return true;
  return w.cols % 2 == 0 && w.cols % w.format.group == 0;
}

int log2_of(std::int64_t power) { return std::countr_zero(static_cast<std::uint64_t>(power)); }

MmaScales scales_of(const QuantView& w, int unit_columns) {
  MmaScales s{};
  s.scales = w.scales;
  s.zeros = w.zeros;
  s.scale_codes = w.scale_codes;
  s.nested = w.nested_scales;
  s.map = w.nested_map;
  s.offset = w.nested_offset;
  s.first_block = w.first_block;
  s.row_blocks = w.row_blocks;
  const bool by_row = w.format.group == 0;
  s.across = by_row ? 1 : device::ceil_div(w.cols, w.format.group);
  s.row_shift = w.format.tiles ? log2_of(kTile) : 0;
  s.unit_shift = by_row ? 30 : log2_of(w.format.group / unit_columns);
  return s;
}

template <class Format>
int units_of(const QuantView& w) {
  return static_cast<int>(device::ceil_div(w.cols, Format::kTogether * Format::Layout::kColumns));
}

template <class Format>
MmaParams params_of(const QuantView& w) {
  MmaParams p{};
  p.codes = w.codes;
  p.row_bytes = w.row_bytes();
  p.rows = static_cast<int>(w.rows);
  p.columns = static_cast<int>(w.cols);
  p.units = units_of<Format>(w);
  p.scale = scales_of(w, Format::Layout::kColumns);
  const auto values = w.format.codes == Codes::nf4 ? nf4_values() : fp4_values();
  for (std::size_t i = 0; i < values.size(); ++i) p.values[i] = bf16(values[i]).bits;
  return p;
}

/// Blocks to a cluster: as few as hold x in little memory, or at all; 0 where even 8 cannot.
template <class Format>
int cluster_for(int m, int units) {
  int fits = 0;
  for (const int cluster : {8, 4, 2, 1}) {
    if (mma_shared_bytes<Format>(m, units, cluster) > kSharedBytes) break;
    const std::int64_t columns = Format::kTogether * Format::Layout::kColumns;
    const std::int64_t x = 2 * m * device::ceil_div(units, cluster) * columns;
    if (fits != 0 && x > kXBytes) break;
    fits = cluster;
  }
  return fits;
}

/// Runs of a lane begin at addresses that it can read at once, and shared memory holds a row of x.
bool has_mma(const QuantView& w) {
  if (!has_plain(w) || w.rows >= kMost || w.first_block + w.rows * w.row_blocks >= kMost) return false;
  bool fits = false;
  const auto address = reinterpret_cast<std::uintptr_t>(w.codes);
  const bool known = visit_mma_format(w, [&](auto format) {
    using Format = decltype(format);
    constexpr int kBytes = 4 * Format::Layout::kWords;
    fits = w.row_bytes() % kBytes == 0 && address % kBytes == 0 &&
           cluster_for<Format>(1, units_of<Format>(w)) > 0;
  });
  return known && fits;
}

template <class Format>
void multiply(Stream& stream, const View<const bf16>& x, const QuantView& w, const View<bf16>& y) {
  MmaParams p = params_of<Format>(w);
  const auto rows = static_cast<int>(x.dim(0));
  int each = rows;  // of a pass: more do not fit into shared memory
  while (each > 1 && cluster_for<Format>(each, p.units) == 0) each = (each + 1) / 2;
  p.x_stride = rows == 1 ? 0 : x.strides[0];
  p.y_stride = rows == 1 ? 0 : y.strides[0];
  for (int row = 0; row < rows; row += each) {
    p.m = std::min(each, rows - row);
    p.x = x.data + row * p.x_stride;
    p.y = y.data + row * p.y_stride;
    p.cluster = cluster_for<Format>(p.m, p.units);
    p.tiles = static_cast<int>(device::ceil_div(w.rows, kTileRows * p.cluster));
    launch_quant_mma<Format>(device::native(stream), p);
  }
}

bool aligned(const View<const bf16>& x) {
  return device::aligned_rows(x.data, x.dim(0) == 1 ? 0 : x.strides[0]);
}

}  // namespace

bool has_quant_matmul(const QuantView& w, std::int64_t rows) {
  return rows <= (has_quant_wgmma(w) || has_mma(w) ? kQuantRows : kPlainRows) && has_plain(w);
}

template <class T>
void quant_matmul(Stream& stream, View<const T> x_MK, const QuantView& w, View<T> y_MN, bool early) {
  if (y_MN.numel() == 0) return;
  if constexpr (std::is_same_v<T, bf16>) {
    // For any number of rows, so that the bits of one do not depend on it.
    if (has_quant_wgmma(w) && aligned(x_MK)) return quant_wgmma(stream, x_MK, w, y_MN, early);
    const auto multiply_by = [&](auto format) { multiply<decltype(format)>(stream, x_MK, w, y_MN); };
    if (has_mma(w) && aligned(x_MK) && visit_mma_format(w, multiply_by)) return;
  }
  quant_gemv<T>(stream, x_MK, w, y_MN);
}

template void quant_matmul<float>(Stream&, View<const float>, const QuantView&, View<float>, bool);
template void quant_matmul<bf16>(Stream&, View<const bf16>, const QuantView&, View<bf16>, bool);

}  // namespace ridge::kernels::cuda
