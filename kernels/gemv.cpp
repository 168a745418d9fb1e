#include "kernels/gemv.h"

#include "core/base/dtype.h"
#include "core/base/threads.h"

namespace ridge::kernels {
namespace {

constexpr std::int64_t kRowsPerChunk = 64;

inline float widen(float value) { return value; }
inline float widen(bf16 value) { return static_cast<float>(value); }

// Two rows of w at a time keep more loads in flight than one.
template <class T, int kM>
void dot_rows(const float* x_MK, std::int64_t k, const T* w_NK, std::int64_t w_stride, std::int64_t n,
              float* y_MN, std::int64_t y_stride) {
  for (std::int64_t row = 0; row < n; row += 2) {
    const bool pair = row + 1 < n;
    const T* __restrict w0 = w_NK + row * w_stride;
    const T* __restrict w1 = pair ? w0 + w_stride : w0;
    float s0[kM] = {}, s1[kM] = {};
    for (int m = 0; m < kM; ++m) {
      const float* __restrict x = x_MK + m * k;
      float a = 0, b = 0;
#pragma omp simd reduction(+ : a, b)
      for (std::int64_t i = 0; i < k; ++i) {
        a += x[i] * widen(w0[i]);
        b += x[i] * widen(w1[i]);
      }
      s0[m] = a;
      s1[m] = b;
    }
    for (int m = 0; m < kM; ++m) {
      y_MN[m * y_stride + row] = s0[m];
      if (pair) y_MN[m * y_stride + row + 1] = s1[m];
    }
  }
}

}  // namespace

template <class T>
void gemv_rows(const float* x_MK, std::int64_t m, std::int64_t k, const T* w_NK, std::int64_t w_stride,
               std::int64_t n, float* y_MN, std::int64_t y_stride) {
  parallel_for(n, kRowsPerChunk, [&](std::int64_t begin, std::int64_t end) {
    const T* w = w_NK + begin * w_stride;
    float* y = y_MN + begin;
    switch (m) {
      case 1:
        dot_rows<T, 1>(x_MK, k, w, w_stride, end - begin, y, y_stride);
        break;
      case 2:
        dot_rows<T, 2>(x_MK, k, w, w_stride, end - begin, y, y_stride);
        break;
      case 3:
        dot_rows<T, 3>(x_MK, k, w, w_stride, end - begin, y, y_stride);
        break;
      default:
        dot_rows<T, 4>(x_MK, k, w, w_stride, end - begin, y, y_stride);
        break;
    }
  });
}

template void gemv_rows<float>(const float*, std::int64_t, std::int64_t, const float*, std::int64_t,
                               std::int64_t, float*, std::int64_t);
template void gemv_rows<bf16>(const float*, std::int64_t, std::int64_t, const bf16*, std::int64_t,
                              std::int64_t, float*, std::int64_t);

}  // namespace ridge::kernels
