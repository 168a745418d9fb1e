// Matrices into weight formats and back, by rounding to nearest.
#pragma once

#include "core/base/launch.h"
#include "core/base/view.h"
#include "kernels/formats/format.h"

namespace ridge::kernels {

/// Fills all that `out.format` has of w [N, K], with dense rows: codes, scales, zeros and, under
/// double_quant, the scales' codes, nested scales, map and offset. The same bits on a CPU and on a GPU.
/// Definitions:
///   nf4, fp4   absmax of 64 in f32, the nearest code of w (1 / absmax), as in bitsandbytes' CUDA kernels;
///              its CPU code rounds fp4's values, and with them a threshold. Second level: absmax less
///              their mean in blocks of 256, in the signed dynamic map. The mean is summed in f64: its
///              last bit may differ from PyTorch's
///   int8, fp8  absmax of a row / 127.5 and / 448, tiles too; codes are w / scale, rounded to even
///   int4       symmetric: absmax of a group / 7.5, q in -8 .. 7, kept + 8; with zero points:
///              (max - min) / 15, 0 included, zero = round(-8 - min / scale), q = round(w / scale + zero),
///              all clamped, kept + 8                                              (compressed-tensors)
/// int4's scale is rounded to its dtype first, and codes are of that. A group of zeros has scale 1 where the
/// format divides by it, and codes of zero. Instantiated for float and bf16.
template <class T>
void quantize(Stream& stream, View<const T> w_NK, const QuantTarget& out);

/// w [N, K], dense rows, in T: each element is computed in f32 and rounded once. Instantiated for float,
/// double and bf16.
template <class T>
void dequantize(Stream& stream, const QuantView& w, View<T> out_NK);

/// The scales of nf4-dq and fp4-dq, one a block of the view: [N K / 64], rounded up.
void dequantize_scales(Stream& stream, const QuantView& w, View<float> out);

/// The place of the first scale, in host memory, that no weight can have: NaN, infinite or negative, and zero
/// where elements were divided by it; -1 where there is none. Under double_quant of the first block whose
/// scale is not finite: one that is near zero may come back below it. quantize() of an element that is NaN or
/// infinite leaves such a scale behind, and codes that say nothing.
std::int64_t first_bad_scale(const QuantView& w);

namespace cuda {
template <class T>
void quantize(Stream& stream, View<const T> w_NK, const QuantTarget& out);
template <class T>
void dequantize(Stream& stream, const QuantView& w, View<T> out_NK);
void dequantize_scales(Stream& stream, const QuantView& w, View<float> out);
}  // namespace cuda

}  // namespace ridge::kernels
