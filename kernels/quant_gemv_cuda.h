// Few rows times codes on the GPU, one element at a time: for x in float, and for shapes and addresses that
// tensor cores do not take.
#pragma once

#include "core/base/stream.h"
#include "core/base/view.h"
#include "kernels/formats/format.h"

namespace ridge::kernels::cuda {

/// As kernels::quant_matmul, for any matrix whose rows are whole groups and whole bytes.
template <class T>
void quant_gemv(Stream& stream, const View<const T>& x_MK, const QuantView& w, const View<T>& y_MN);

}  // namespace ridge::kernels::cuda
