// A typed pointer with shape and strides that owns nothing: all that a kernel ever sees.
#pragma once

#include <type_traits>

#include "core/base/shape.h"

namespace ridge {

template <class T>
struct View {
  T* data = nullptr;
  Shape shape;
  Strides strides;  // in elements

  View() = default;
  View(T* pointer, const Shape& extents) : View(pointer, extents, contiguous_strides(extents)) {}
  View(T* pointer, const Shape& extents, const Strides& steps)
      : data(pointer), shape(extents), strides(steps) {}
  /// A View<T> reads as a View<const T>.
  template <class U>
  requires(std::is_same_v<const U, T> && !std::is_const_v<U>) View(const View<U>& other)
      : View(other.data, other.shape, other.strides) {}

  int ndim() const { return shape.ndim(); }
  std::int64_t dim(int d) const { return shape[d]; }
  std::int64_t numel() const { return ridge::numel(shape); }
  /// Bytes of the elements, each counted once.
  double bytes() const { return static_cast<double>(numel()) * sizeof(T); }
  bool contiguous() const {
    std::int64_t step = 1;
    for (int d = ndim() - 1; d >= 0; --d) {
      if (shape[d] != 1 && strides[d] != step) return false;
      step *= shape[d];
    }
    return true;
  }
  /// Whether the last dimension is dense, so that a row is a plain array.
  bool rows_dense() const { return ndim() == 0 || shape[-1] == 1 || strides[-1] == 1; }

  template <class... Index>
  T& operator()(Index... index) const {
    std::int64_t offset = 0;
    int d = 0;
    ((offset += static_cast<std::int64_t>(index) * strides[d++]), ...);
    return data[offset];
  }
};

}  // namespace ridge
