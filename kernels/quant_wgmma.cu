// Which kernel takes a format.
#include <algorithm>
#include <bit>
#include <limits>

#include "kernels/device/launch.cuh"
#include "kernels/device/tensor_map.h"
#include "kernels/formats/codes.h"
#include "kernels/quant_wgmma_codes.cuh"
#include "kernels/quant_wgmma_cuda.h"
#include "kernels/quant_wgmma_params.cuh"

namespace ridge::kernels::cuda {
namespace {

using device::WideBytes;
using device::WideFlat;
using device::WideInt4;

constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max() / 2;

int log2_of(std::int64_t power) { return std::countr_zero(static_cast<std::uint64_t>(power)); }

template <int kGroup, class F>
void visit_int4(const QuantView& w, const F& f) {
  const bool narrow = w.scale_dtype == DType::bf16;
  if (w.format.zero_points) {
    narrow ? f(WideInt4<kGroup, true, true>()) : f(WideInt4<kGroup, true, false>());
  } else {
    narrow ? f(WideInt4<kGroup, false, true>()) : f(WideInt4<kGroup, false, false>());
  }
}

template <class F>
void visit_format(const QuantView& w, const F& f) {
  const WeightFormat& format = w.format;
  if (format.codes == Codes::int8) return f(WideBytes<false, 0>());
  if (format.codes == Codes::fp8) return format.tiles ? f(WideBytes<true, 2>()) : f(WideBytes<true, 0>());
  if (format.flat()) return format.double_quant ? f(WideFlat<true>()) : f(WideFlat<false>());
  if (format.group == 32) return visit_int4<1>(w, f);
  if (format.group == 64) return visit_int4<2>(w, f);
  visit_int4<4>(w, f);
}

WgmmaScales scales_of(const QuantView& w) {
  WgmmaScales s{};
  s.scales = w.scales;
  s.zeros = w.zeros;
  s.scale_codes = w.scale_codes;
  s.nested = w.nested_scales;
  s.map = w.nested_map;
  s.offset = w.nested_offset;
  s.first_block = w.first_block;
  s.row_blocks = w.row_blocks;
  const std::int64_t group = w.format.group;
  const std::int64_t unit = w.format.codes == Codes::int4 ? std::min<std::int64_t>(group, 128) : 64;
  s.across = group == 0 ? 1 : device::ceil_div(w.cols, group);
  s.row_shift = w.format.tiles ? log2_of(kTile) : 0;
  s.unit_shift = group == 0 ? 30 : log2_of(group / unit);
  s.units = static_cast<int>(device::ceil_div(w.cols, unit));
  return s;
}

}  // namespace

bool has_quant_wgmma(const QuantView& w) {
  if (!device::has_tensor_maps()) return false;
  const auto group = static_cast<std::uint64_t>(w.format.group);
  if (w.rows <= 0 || w.cols <= 0 || w.rows >= kMost || w.cols >= kMost) return false;
  if (w.row_bytes() % 16 != 0 || reinterpret_cast<std::uintptr_t>(w.codes) % 16 != 0) return false;
  if (w.format.bits() == 4 && w.cols % w.format.group != 0) return false;
  if (w.format.codes == Codes::int4 && (!std::has_single_bit(group) || group < 32)) return false;
  const std::int64_t across = w.format.group == 0 ? 1 : device::ceil_div(w.cols, w.format.group);
  return w.rows * across < kMost && w.first_block + w.rows * w.row_blocks < kMost;
}

void quant_wgmma(Stream& stream, View<const bf16> x_MK, const QuantView& w, View<bf16> y_MN, bool early) {
  WgmmaParams p{};
  p.rows = static_cast<int>(w.rows);
  p.columns = static_cast<int>(w.cols);
  p.slabs = 2 * static_cast<int>(device::ceil_div(w.row_bytes(), kBoxBytes));
  p.scale = scales_of(w);
  const auto values = w.format.codes == Codes::nf4 ? nf4_values() : fp4_values();
  for (std::size_t i = 0; i < values.size(); ++i) p.values[i] = bf16(values[i]).bits;
  p.x = x_MK.data;
  p.x_stride = x_MK.strides[0];
  p.m = static_cast<int>(x_MK.dim(0));
  p.y = y_MN.data;
  p.y_stride = y_MN.strides[0];
  p.early = early;
  visit_format(w, [&](auto format) {
    launch_quant_wgmma<decltype(format)>(device::native(stream), p, w.codes, w.row_bytes());
  });
}

}  // namespace ridge::kernels::cuda
