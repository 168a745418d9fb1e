// The second level of nf4-dq and fp4-dq on the GPU.
#pragma once

#include <cstdint>

#include "core/base/stream.h"
#include "kernels/formats/format.h"

namespace ridge::kernels::cuda {

/// As kernels::quantize_scales, of scales on the device [B].
void quantize_scales(Stream& stream, const float* scales_B, std::int64_t count, const QuantTarget& out);

}  // namespace ridge::kernels::cuda
