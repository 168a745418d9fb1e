// The elements of a matrix [N, K] with dense rows, counted through: blocks of a flat format run across rows.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/base/view.h"
#include "kernels/element.h"

namespace ridge::kernels {

template <class T>
struct FlatRows {
  T* data;
  std::int64_t cols, stride, count;

  explicit FlatRows(const View<T>& w)
      : data(w.data), cols(w.dim(1)), stride(w.dim(0) == 1 ? w.dim(1) : w.strides[0]), count(w.numel()) {
    if (stride != cols) return;
    cols = stride = std::max<std::int64_t>(1, count);  // one run
  }

  /// Calls run(element, done, here) for each part of [begin, begin + n) that lies in one row.
  template <class Run>
  void each_run(std::int64_t begin, std::int64_t n, const Run& run) const {
    for (std::int64_t done = 0; done < n;) {
      const std::int64_t row = (begin + done) / cols, c = (begin + done) % cols;
      const std::int64_t here = std::min(n - done, cols - c);
      run(data + row * stride + c, done, here);
      done += here;
    }
  }
  void read(std::int64_t begin, std::int64_t n, float* to) const {
    each_run(begin, n, [&](const T* x, std::int64_t done, std::int64_t here) {
#pragma omp simd
      for (std::int64_t i = 0; i < here; ++i) to[done + i] = load(x[i]);
    });
  }
  /// from[i] * factor, rounded to T.
  void write(std::int64_t begin, std::int64_t n, const float* from, float factor) const {
    each_run(begin, n, [&](T* y, std::int64_t done, std::int64_t here) {
#pragma omp simd
      for (std::int64_t i = 0; i < here; ++i) store(y[i], from[done + i] * factor);
    });
  }
};

}  // namespace ridge::kernels
