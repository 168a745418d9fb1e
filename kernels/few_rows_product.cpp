#include "kernels/few_rows_product.h"

#include "kernels/matmul.h"

namespace ridge::kernels {

bool has_few_rows_product(std::int64_t rows, Device device) {
  return kBuiltWithCuda && planned_device(device) == Device::cuda && rows <= kMostFewRows;
}

void few_rows_product(Stream& stream, View<const float> x, View<const float> w, View<float> y) {
  if (x.dim(1) != w.dim(1) || y.dim(0) != x.dim(0) || y.dim(1) != w.dim(0) || !x.rows_dense() ||
      !w.rows_dense() || !y.rows_dense() || x.dim(0) > kMostFewRows) {
    fail("few_rows_product: {} times {} into {}", to_string(x.shape), to_string(w.shape), to_string(y.shape));
  }
  const View<const float> across(w.data, {w.dim(1), w.dim(0)}, {1, w.strides[0]});
  launch(
      stream, "few_rows_product", matmul_work<float, float>(x, across, false),
      [] { fail("few_rows_product: for a GPU alone"); }, [&] { cuda::few_rows_product(stream, x, w, y); });
}

}  // namespace ridge::kernels
