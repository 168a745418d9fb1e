#include "parallel/placement.h"

#include <algorithm>

#include "core/base/error.h"

namespace ridge::parallel {
namespace {

using Extents = std::vector<std::int64_t>;

std::int64_t product(const Extents& extents, std::size_t first) {
  std::int64_t n = 1;
  for (std::size_t i = first; i < extents.size(); ++i) n *= extents[i];
  return n;
}

// Elements [begin, end) of the part of `shape` from dimension `dim` on; `place` holds the offsets before it.
// At the most: the end of a row, whole rows, the beginning of a row, in each dimension.
void cut(const Extents& shape, std::size_t dim, Extents place, std::int64_t begin, std::int64_t end,
         std::vector<Box>& out) {
  if (begin >= end) return;
  const std::int64_t row = product(shape, dim + 1);
  const std::int64_t first = begin / row, last = (end - 1) / row;
  if (first == last && dim + 1 < shape.size() && end - begin < row) {
    place[dim] = first;
    return cut(shape, dim + 1, place, begin - first * row, end - first * row, out);
  }
  const std::int64_t whole_begin = (begin + row - 1) / row, whole_end = end / row;
  place[dim] = first;
  cut(shape, dim + 1, place, begin - first * row, whole_begin * row - first * row, out);
  if (whole_begin < whole_end) {
    Box box{place, shape};
    std::fill(box.extent.begin(), box.extent.begin() + static_cast<std::ptrdiff_t>(dim), 1);
    std::fill(box.offset.begin() + static_cast<std::ptrdiff_t>(dim), box.offset.end(), 0);
    box.offset[dim] = whole_begin;
    box.extent[dim] = whole_end - whole_begin;
    out.push_back(std::move(box));
  }
  place[dim] = whole_end;
  cut(shape, dim + 1, place, 0, end - whole_end * row, out);
}

}  // namespace

std::int64_t Box::numel() const { return product(extent, 0); }

Shape Placement::local_shape(const Shape& logical) const {
  Shape shape = logical;
  if (dim >= 0) {
    check(dim < logical.ndim() && begin >= 0 && begin <= end && end <= logical[dim], "rows of a placement");
    shape[dim] = end - begin;
  }
  return shape;
}

std::vector<Box> boxes(const Placement& placement, const Shape& logical, std::int64_t flat_begin,
                       std::int64_t flat_end) {
  const Shape local = placement.local_shape(logical);
  check(flat_begin >= 0 && flat_end <= numel(local), "elements of this rank's piece");
  std::vector<Box> found;
  if (flat_begin >= flat_end) return found;
  const Extents extents(local.begin(), local.end());
  if (extents.empty()) return {Box{}};
  cut(extents, 0, Extents(extents.size(), 0), flat_begin, flat_end, found);
  if (placement.dim >= 0) {
    for (Box& box : found) box.offset[static_cast<std::size_t>(placement.dim)] += placement.begin;
  }
  return found;
}

}  // namespace ridge::parallel
