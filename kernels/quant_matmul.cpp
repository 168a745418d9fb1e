#include "kernels/quant_matmul.h"

#include <algorithm>
#include <type_traits>

#include "core/base/memory.h"
#include "core/base/threads.h"
#include "kernels/element.h"
#include "kernels/quant_gemv.h"

namespace ridge::kernels {
namespace {

constexpr std::int64_t kChunksPerThread = 4;
constexpr std::int64_t kMostRows = 32;  // then BLAS pays for dequantizing

// Rows of w are independent, so the cut changes no bits: few long streams, as many for each thread.
std::int64_t rows_of_a_chunk(std::int64_t n) {
  const std::int64_t chunks = kChunksPerThread * thread_count();
  return std::max<std::int64_t>(8, (n + chunks - 1) / chunks);
}

void multiply_rows(const QuantView& w, const ArrangedRows& x, std::int64_t rows, float* y,
                   std::int64_t y_stride) {
  const auto gemv = w.format.bits() == 8 ? quant_gemv_bytes : quant_gemv_nibbles;
  parallel_for(w.rows, rows_of_a_chunk(w.rows), [&](std::int64_t begin, std::int64_t end) {
    gemv(w, x, rows, begin, end, y + begin, y_stride);
  });
}

template <class T>
void multiply(const View<const T>& x, const QuantView& w, const View<T>& y, float* arranged, float* product) {
  for (std::int64_t m = 0; m < x.dim(0); m += kQuantGemvRows) {
    const std::int64_t rows = std::min(kQuantGemvRows, x.dim(0) - m);
    const ArrangedRows few = arrange<T>(w, x.data + m * x.strides[0], x.strides[0], rows, arranged);
    if constexpr (std::is_same_v<T, float>) {
      multiply_rows(w, few, rows, y.data + m * y.strides[0], y.strides[0]);
    } else {
      multiply_rows(w, few, rows, product, w.rows);
      for (std::int64_t i = 0; i < rows; ++i) {
        T* to = y.data + (m + i) * y.strides[0];
        for (std::int64_t n = 0; n < w.rows; ++n) store(to[n], product[i * w.rows + n]);
      }
    }
  }
}

template <class T>
bool fits(const View<const T>& x, const QuantView& w, const View<T>& y) {
  return x.ndim() == 2 && y.ndim() == 2 && x.dim(0) == y.dim(0) && x.dim(0) <= kQuantRows &&
         x.dim(1) == w.cols && y.dim(1) == w.rows && x.rows_dense() && y.rows_dense();
}

}  // namespace

bool has_quant_matmul(const QuantView& w, std::int64_t rows, Device device) {
  if (planned_device(device) == Device::cuda) {
    if constexpr (kBuiltWithCuda) return cuda::has_quant_matmul(w, rows);
    return rows <= kQuantRows && has_quant_gemv(w);
  }
  return rows <= kMostRows && has_quant_gemv(w);
}

template <class T>
void quant_matmul(Stream& stream, View<const T> x_MK, const QuantView& w, View<T> y_MN, bool early) {
  if (!fits(x_MK, w, y_MN) || !has_quant_gemv(w)) {
    fail("quant_matmul: {} times {} [{}, {}] into {}", to_string(x_MK.shape), name_of(w.format), w.rows,
         w.cols, to_string(y_MN.shape));
  }
  const Work work = quant_matmul_work(x_MK, w);
  const auto on_cuda = [&] { cuda::quant_matmul<T>(stream, x_MK, w, y_MN, early); };
  if (planned_device(stream.device()) == Device::cuda)
    return launch(
        stream, "quant_matmul", work, [] {}, on_cuda);
  const PurposeScope purpose(Purpose::workspace);
  const std::int64_t rows = std::min(kQuantGemvRows, x_MK.dim(0));
  constexpr std::int64_t kFloat = sizeof(float);
  const Storage arranged(stream.device(), arranged_size(w, rows) * kFloat);
  const Storage product(stream.device(), std::is_same_v<T, float> ? 0 : rows * w.rows * kFloat);
  launch(stream, "quant_matmul", work, [&] {
    multiply(x_MK, w, y_MN, static_cast<float*>(arranged.data()), static_cast<float*>(product.data()));
  });
}

template void quant_matmul<float>(Stream&, View<const float>, const QuantView&, View<float>, bool);
template void quant_matmul<bf16>(Stream&, View<const bf16>, const QuantView&, View<bf16>, bool);

}  // namespace ridge::kernels
