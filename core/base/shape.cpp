#include "core/base/shape.h"

#include <algorithm>

namespace ridge {

Dims::Dims(std::span<const std::int64_t> values) {
  check(values.size() <= kMaxDims, "at most six dimensions");
  std::copy(values.begin(), values.end(), values_.begin());
  ndim_ = static_cast<int>(values.size());
}

void Dims::push_back(std::int64_t value) {
  check(ndim_ < kMaxDims, "at most six dimensions");
  values_[static_cast<std::size_t>(ndim_++)] = value;
}

bool Dims::operator==(const Dims& other) const {
  return std::equal(begin(), end(), other.begin(), other.end());
}

std::int64_t numel(const Shape& shape) {
  std::int64_t n = 1;
  for (const std::int64_t extent : shape) {
    check(extent >= 0, "negative extent");
    check(!__builtin_mul_overflow(n, extent, &n), "number of elements overflows 64 bits");
  }
  return n;
}

Strides contiguous_strides(const Shape& shape) {
  Strides strides = shape;
  std::int64_t step = 1;
  for (int d = shape.ndim() - 1; d >= 0; --d) {
    strides[d] = step;
    step *= shape[d];
  }
  return strides;
}

std::string to_string(const Dims& dims) {
  std::string text = "[";
  for (int d = 0; d < dims.ndim(); ++d) text += (d ? ", " : "") + std::to_string(dims[d]);
  return text + "]";
}

Shape broadcast(const Shape& a, const Shape& b) {
  const int ndim = std::max(a.ndim(), b.ndim());
  Shape out;
  for (int d = 0; d < ndim; ++d) {
    const int da = d - (ndim - a.ndim());
    const int db = d - (ndim - b.ndim());
    const std::int64_t na = da < 0 ? 1 : a[da];
    const std::int64_t nb = db < 0 ? 1 : b[db];
    if (na != nb && na != 1 && nb != 1) fail("shapes {} and {} do not broadcast", to_string(a), to_string(b));
    out.push_back(na == 1 ? nb : na);
  }
  return out;
}

}  // namespace ridge
