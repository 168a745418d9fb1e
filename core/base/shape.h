// Extents of up to six dimensions, as a value.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>

#include "core/base/error.h"

namespace ridge {

inline constexpr int kMaxDims = 6;

/// A small vector of extents or strides, in elements.
class Dims {
 public:
  Dims() = default;
  Dims(std::initializer_list<std::int64_t> values) : Dims(std::span(values.begin(), values.size())) {}
  explicit Dims(std::span<const std::int64_t> values);

  int ndim() const { return ndim_; }
  std::int64_t operator[](int dim) const { return values_[static_cast<std::size_t>(normalize(dim))]; }
  std::int64_t& operator[](int dim) { return values_[static_cast<std::size_t>(normalize(dim))]; }
  const std::int64_t* begin() const { return values_.data(); }
  const std::int64_t* end() const { return values_.data() + ndim_; }
  std::span<const std::int64_t> span() const { return {values_.data(), static_cast<std::size_t>(ndim_)}; }
  void push_back(std::int64_t value);
  bool operator==(const Dims& other) const;

 private:
  int normalize(int dim) const {  // negative dims count from the end
    const int d = dim < 0 ? dim + ndim_ : dim;
    check(d >= 0 && d < ndim_, "dimension out of range");
    return d;
  }
  std::array<std::int64_t, kMaxDims> values_{};
  int ndim_ = 0;
};

using Shape = Dims;
using Strides = Dims;

/// Product of the extents; an Error on overflow or a negative extent. 1 for no dimensions.
std::int64_t numel(const Shape& shape);
/// Row-major strides in elements.
Strides contiguous_strides(const Shape& shape);
/// "[2, 3]"
std::string to_string(const Dims& dims);
/// The shape that both broadcast to, by NumPy's rule; an Error names both where there is none.
Shape broadcast(const Shape& a, const Shape& b);

}  // namespace ridge
