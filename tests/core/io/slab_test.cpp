#include "core/io/slab.h"

#include <gtest/gtest.h>

#include <limits>
#include <random>

namespace ridge {
namespace {

constexpr std::int64_t kHuge = std::numeric_limits<std::int64_t>::max();

TEST(ElementCount, ChecksOverflowAndSign) {
  EXPECT_EQ(element_count({}), 1);
  EXPECT_EQ(element_count(Extents{3, 0, 5}), 0);
  EXPECT_EQ(element_count(Extents{3, 4, 5}), 60);
  EXPECT_FALSE(element_count(Extents{kHuge, 2}).has_value());
  EXPECT_FALSE(element_count(Extents{2, -1}).has_value());
}

TEST(BoxIsWithin, ChecksEveryDim) {
  const Extents dims{4, 6};
  EXPECT_TRUE(box_is_within(Extents{0, 0}, Extents{4, 6}, dims));
  EXPECT_TRUE(box_is_within(Extents{4, 6}, Extents{0, 0}, dims));
  EXPECT_FALSE(box_is_within(Extents{1, 0}, Extents{4, 6}, dims));
  EXPECT_FALSE(box_is_within(Extents{0, 5}, Extents{1, 2}, dims));
  EXPECT_FALSE(box_is_within(Extents{0, -1}, Extents{1, 1}, dims));
  EXPECT_FALSE(box_is_within(Extents{0, 1}, Extents{1, kHuge}, dims));
  EXPECT_FALSE(box_is_within(Extents{0}, Extents{1}, dims));
}

TEST(BoxesOverlap, TouchingBoxesDoNot) {
  const Extents corner{0, 0}, beside{0, 3}, below{2, 0}, size{2, 3};
  EXPECT_FALSE(boxes_overlap(corner, size, beside, size));
  EXPECT_FALSE(boxes_overlap(corner, size, below, size));
  EXPECT_TRUE(boxes_overlap(corner, size, Extents{1, 2}, size));
  EXPECT_FALSE(boxes_overlap(corner, size, Extents{0, 0}, Extents{0, 3}));
}

// Walks every slice of random boxes: the row-major numbers must come in order, each once.
TEST(SlicesOf, VisitEveryElementOnceInOrder) {
  std::mt19937 rng(11);
  for (int round = 0; round < 200; ++round) {
    Extents extent(rng() % 5);
    for (std::int64_t& n : extent) n = 1 + static_cast<std::int64_t>(rng() % 6);
    const std::int64_t limit = 1 + static_cast<std::int64_t>(rng() % 40);
    std::int64_t next = 0;
    for (const SlabSlice& slice : slices_of(extent, limit)) {
      EXPECT_LE(*element_count(slice.extent), limit);
      EXPECT_EQ(slice.first, next);
      std::int64_t corner = 0, last = 0;  // row-major numbers of the slice's first and last element
      for (std::size_t d = 0; d < extent.size(); ++d) {
        corner = corner * extent[d] + slice.offset[d];
        last = last * extent[d] + slice.offset[d] + slice.extent[d] - 1;
      }
      EXPECT_EQ(corner, next);
      next += *element_count(slice.extent);
      EXPECT_EQ(last, next - 1);
    }
    EXPECT_EQ(next, *element_count(extent));
  }
}

TEST(SlicesOf, EmptyBoxHasNone) {
  EXPECT_TRUE(slices_of(Extents{3, 0}, 10).empty());
  EXPECT_EQ(dims_text(Extents{3, 0}), "[3, 0]");
  EXPECT_EQ(dims_text({}), "[]");
}

}  // namespace
}  // namespace ridge
