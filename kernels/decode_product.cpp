#include "kernels/decode_product.h"

namespace ridge::kernels {
namespace {

struct Matrix {
  std::int64_t rows, cols;
  double bytes;
};

Matrix matrix_of(const DecodeWeight& w) {
  if (const auto* coded = std::get_if<QuantView>(&w)) return {coded->rows, coded->cols, bytes_of(*coded)};
  const auto& dense = std::get<View<const bf16>>(w);
  return {dense.dim(0), dense.dim(1), static_cast<double>(dense.numel()) * sizeof(bf16)};
}

std::int64_t outputs_of(const Matrix& w, const ProductSteps& steps) {
  return steps.end == ProductEnd::swiglu && !steps.up_NK.has_value() ? w.rows / 2 : w.rows;
}

}  // namespace

bool has_decode_product(const DecodeWeight& w, std::int64_t rows, const ProductSteps& steps, Device device) {
  if (planned_device(device) != Device::cuda) return false;
  if constexpr (kBuiltWithCuda) return cuda::has_decode_product(w, rows, steps);
  return false;
}

void decode_product(Stream& stream, View<const bf16> x_MK, const DecodeWeight& w, const ProductSteps& steps,
                    View<bf16> y_MN) {
  const Matrix matrix = matrix_of(w);
  const std::int64_t m = x_MK.dim(0), outputs = outputs_of(matrix, steps);
  if (x_MK.dim(1) != matrix.cols || y_MN.dim(0) != m || y_MN.dim(1) != outputs || m > kDecodeRows ||
      !x_MK.rows_dense() || !y_MN.rows_dense()) {
    fail("decode_product: {} times [{}, {}] into {}", to_string(x_MK.shape), matrix.rows, matrix.cols,
         to_string(y_MN.shape));
  }
  const auto count = static_cast<double>(m);
  const double matrices = steps.up_NK.has_value() ? 2 : 1;
  const double rows = matrices * static_cast<double>(matrix.rows), cols = static_cast<double>(matrix.cols);
  const double moved = count * (cols + static_cast<double>(outputs)) * sizeof(bf16);
  launch(
      stream, "decode_product", {2 * count * rows * cols, matrices * matrix.bytes + moved},
      [] { fail("decode_product: for a GPU alone"); },
      [&] { cuda::decode_product(stream, x_MK, w, steps, y_MN); });
}

}  // namespace ridge::kernels
