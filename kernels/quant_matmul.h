// Few rows times a matrix in a weight format: codes become values in registers, and are read once.
#pragma once

#include "core/base/launch.h"
#include "core/base/view.h"
#include "kernels/formats/format.h"

namespace ridge::kernels {

/// Rows that quant_matmul takes; more of them pay for dequantizing the matrix first.
inline constexpr std::int64_t kQuantRows = 64;

/// 2MNK operations; x, codes and scales read once, y written once.
template <class T>
Work quant_matmul_work(const View<const T>& x_MK, const QuantView& w) {
  const double m = static_cast<double>(x_MK.dim(0)), n = static_cast<double>(w.rows);
  const double k = static_cast<double>(w.cols);
  return {2 * m * n * k, bytes_of(w) + m * (k + n) * sizeof(T)};
}

/// Whether quant_matmul has a kernel for so many rows of such a matrix on `device`.
bool has_quant_matmul(const QuantView& w, std::int64_t rows, Device device);

/// y [M, N] = x [M, K] w', M at most kQuantRows; x and y with dense rows of any stride, 16-byte aligned rows
/// on a GPU. Sums are kept in f32. The bits of a row do not depend on the other rows. `early`: on a GPU w may
/// be read before the kernels ahead have ended. Instantiated for float and bf16.
template <class T>
void quant_matmul(Stream& stream, View<const T> x_MK, const QuantView& w, View<T> y_MN, bool early = false);

namespace cuda {
bool has_quant_matmul(const QuantView& w, std::int64_t rows);
template <class T>
void quant_matmul(Stream& stream, View<const T> x_MK, const QuantView& w, View<T> y_MN, bool early);
}  // namespace cuda

}  // namespace ridge::kernels
