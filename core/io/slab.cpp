#include "core/io/slab.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cstddef>

namespace ridge {
namespace {

// Moves `index` to the next outer position, last dim of `outer` fastest; false behind the last one.
bool advance(Extents& index, std::span<const std::int64_t> outer) {
  for (std::size_t d = outer.size(); d-- > 0;) {
    if (++index[d] < outer[d]) return true;
    index[d] = 0;
  }
  return false;
}

}  // namespace

std::optional<std::int64_t> element_count(std::span<const std::int64_t> dims) {
  std::int64_t n = 1;
  for (const std::int64_t dim : dims) {
    if (dim < 0 || __builtin_mul_overflow(n, dim, &n)) return {};
  }
  return n;
}

bool box_is_within(std::span<const std::int64_t> offset, std::span<const std::int64_t> extent,
                   std::span<const std::int64_t> dims) {
  if (offset.size() != dims.size() || extent.size() != dims.size()) return false;
  for (std::size_t d = 0; d < dims.size(); ++d) {
    if (offset[d] < 0 || extent[d] < 0 || offset[d] > dims[d] || extent[d] > dims[d] - offset[d])
      return false;
  }
  return true;
}

bool boxes_overlap(std::span<const std::int64_t> offset_a, std::span<const std::int64_t> extent_a,
                   std::span<const std::int64_t> offset_b, std::span<const std::int64_t> extent_b) {
  for (std::size_t d = 0; d < offset_a.size(); ++d) {
    const std::int64_t begin = std::max(offset_a[d], offset_b[d]);
    const std::int64_t end = std::min(offset_a[d] + extent_a[d], offset_b[d] + extent_b[d]);
    if (begin >= end) return false;
  }
  return true;
}

std::vector<SlabSlice> slices_of(std::span<const std::int64_t> extent, std::int64_t max_elements) {
  const std::int64_t total = element_count(extent).value_or(0);
  if (total == 0) return {};
  std::size_t cut = 0;  // the dim that is cut: one index of it fits in a slice
  std::int64_t inner = total;
  while (cut < extent.size() && (inner /= extent[cut]) > max_elements) ++cut;
  if (cut == extent.size()) return {{Extents(cut), Extents(extent.begin(), extent.end()), 0}};  // a scalar
  const std::int64_t step = std::max<std::int64_t>(1, max_elements / inner);
  std::vector<SlabSlice> slices;
  Extents index(cut);
  std::int64_t first = 0;
  do {
    for (std::int64_t begin = 0; begin < extent[cut]; begin += step) {
      SlabSlice slice{Extents(extent.size()), Extents(extent.begin(), extent.end()), first};
      std::ranges::copy(index, slice.offset.begin());
      std::fill_n(slice.extent.begin(), cut, 1);
      slice.offset[cut] = begin;
      slice.extent[cut] = std::min(step, extent[cut] - begin);
      first += slice.extent[cut] * inner;
      slices.push_back(std::move(slice));
    }
  } while (advance(index, extent.first(cut)));
  return slices;
}

std::string dims_text(std::span<const std::int64_t> dims) {
  return fmt::format("[{}]", fmt::join(dims, ", "));
}

}  // namespace ridge
