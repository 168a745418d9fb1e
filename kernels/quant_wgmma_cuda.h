// Some rows times codes by products of four warps, on a GPU.
#pragma once

#include "core/base/stream.h"
#include "core/base/view.h"
#include "kernels/formats/format.h"

namespace ridge::kernels::cuda {

/// Whether it takes this matrix: rows of whole 16 bytes, groups of int4 a power of two from 32 on.
bool has_quant_wgmma(const QuantView& w);

/// y [M, N] = x [M, K] w', M at most 64, rows of x 16-byte aligned. The bits of a row depend on M no more
/// than on the other rows. `early`: w is read before the kernels ahead have ended.
void quant_wgmma(Stream& stream, View<const bf16> x_MK, const QuantView& w, View<bf16> y_MN, bool early);

}  // namespace ridge::kernels::cuda
