// The second level of nf4-dq and fp4-dq: block scales as 8-bit codes (Dettmers et al., 2023; bitsandbytes).
// B scales, cut into blocks of 256.
#pragma once

#include <array>
#include <cstdint>

#include "kernels/formats/format.h"

namespace ridge::kernels {

/// bitsandbytes' signed dynamic map, sorted: 127 values of each sign over seven decades, 0 and 1.
const std::array<float, 256>& dynamic_map();

/// The mean is summed in f64 in this order on every device: a part of 4096 scales at a time; lane k of 256
/// adds elements k, k + 256, ... of it; a tree joins the lanes; parts follow one another.
inline constexpr std::int64_t kMeanPart = 4096;
inline constexpr int kMeanLanes = 256;

/// Fills the target's map, offset, nested scales and codes from all block scales of a matrix [B].
void quantize_scales(const float* scales_B, std::int64_t count, const QuantTarget& out);

/// Scales `begin` .. `end` - 1 of the view's own, of nf4-dq and fp4-dq, in two roundings as bitsandbytes has
/// it.
void decode_scales(const QuantView& w, std::int64_t begin, std::int64_t end, float* out);

}  // namespace ridge::kernels
