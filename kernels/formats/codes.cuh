// Scales of a weight format on the device.
#pragma once

#include <cstdint>

#include "kernels/formats/codes.h"

namespace ridge::kernels::device {

/// The scale of nf4-dq's or fp4-dq's block `at` of the view, block `whole` of the whole matrix: two
/// roundings, as kernels::decode_scales.
__device__ __forceinline__ float nested_scale(const QuantView& w, std::int64_t at, std::int64_t whole) {
  const float part = __fmul_rn(w.nested_map[w.scale_codes[at]], w.nested_scales[whole / kNestedBlock]);
  return __fadd_rn(part, *w.nested_offset);
}

}  // namespace ridge::kernels::device
