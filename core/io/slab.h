// Boxes of row-major arrays: sizes, bounds, and cuts into pieces of bounded bytes.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace ridge {

using Extents = std::vector<std::int64_t>;

/// Elements of an array of these dims; none when a dim is negative or the product passes 63 bits.
std::optional<std::int64_t> element_count(std::span<const std::int64_t> dims);

/// Whether the box `extent` at `offset` lies within `dims`, overflow included.
bool box_is_within(std::span<const std::int64_t> offset, std::span<const std::int64_t> extent,
                   std::span<const std::int64_t> dims);

bool boxes_overlap(std::span<const std::int64_t> offset_a, std::span<const std::int64_t> extent_a,
                   std::span<const std::int64_t> offset_b, std::span<const std::int64_t> extent_b);

/// A part of a box: `offset` counts from the box's corner, `first` elements of the row-major box precede it.
struct SlabSlice {
  Extents offset;
  Extents extent;
  std::int64_t first;
};

/// Cuts a box into consecutive slices of at most `max_elements` (at least 1), each contiguous in the
/// row-major box. Nothing for an empty box.
std::vector<SlabSlice> slices_of(std::span<const std::int64_t> extent, std::int64_t max_elements);

/// "[2, 3]"
std::string dims_text(std::span<const std::int64_t> dims);

}  // namespace ridge
