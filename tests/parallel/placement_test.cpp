#include "parallel/placement.h"

#include <gtest/gtest.h>

#include <random>

#include "core/base/error.h"

namespace ridge::parallel {
namespace {

// The logical row-major index of each element of a box, in order.
void append_indices(const Box& box, const Shape& logical, std::vector<std::int64_t>& out) {
  std::vector<std::int64_t> at(box.extent.size(), 0);
  for (std::int64_t n = 0; n < box.numel(); ++n) {
    std::int64_t index = 0;
    for (std::size_t d = 0; d < at.size(); ++d)
      index = index * logical[static_cast<int>(d)] + box.offset[d] + at[d];
    out.push_back(index);
    for (std::size_t d = at.size(); d-- > 0;) {
      if (++at[d] < box.extent[d]) break;
      at[d] = 0;
    }
  }
}

// The same by walking over every element of the piece.
std::vector<std::int64_t> walked(const Placement& p, const Shape& logical, std::int64_t begin,
                                 std::int64_t end) {
  std::vector<std::int64_t> out;
  std::int64_t flat = 0;
  for (std::int64_t i = 0; i < numel(logical); ++i) {
    std::int64_t rest = i, at_dim = 0;
    for (int d = logical.ndim() - 1; d >= 0; --d) {
      if (d == p.dim) at_dim = rest % logical[d];
      rest /= logical[d];
    }
    if (p.dim >= 0 && (at_dim < p.begin || at_dim >= p.end)) continue;
    if (flat >= begin && flat < end) out.push_back(i);
    ++flat;
  }
  return out;
}

TEST(Placement, BoxesListThePiecesElementsInOrder) {
  std::mt19937 random(3);
  const std::vector<Shape> shapes{{7}, {1}, {5, 3}, {4, 6}, {3, 1, 5}, {2, 3, 4}, {3, 2, 2, 3}, {6, 1}};
  for (const Shape& logical : shapes) {
    for (int trial = 0; trial < 200; ++trial) {
      Placement p;
      p.dim = static_cast<int>(random() % static_cast<unsigned>(logical.ndim() + 1)) - 1;
      if (p.dim >= 0) {
        p.begin = static_cast<std::int64_t>(random() % static_cast<unsigned>(logical[p.dim]));
        p.end = p.begin +
                static_cast<std::int64_t>(random() % static_cast<unsigned>(logical[p.dim] - p.begin + 1));
      }
      const auto n = static_cast<unsigned>(numel(p.local_shape(logical)));
      const auto a = static_cast<std::int64_t>(random() % (n + 1)),
                 b = static_cast<std::int64_t>(random() % (n + 1));
      const std::int64_t begin = std::min(a, b), end = std::max(a, b);
      std::vector<std::int64_t> got;
      const std::vector<Box> found = boxes(p, logical, begin, end);
      for (const Box& box : found) append_indices(box, logical, got);
      ASSERT_EQ(got, walked(p, logical, begin, end)) << to_string(logical) << " dim " << p.dim;
      if (logical.ndim() == 2) {
        EXPECT_LE(found.size(), 3U);
      }
    }
  }
}

TEST(Placement, WholeRangesAreOneBox) {
  const Placement rows{0, 2, 5, 1, 0, false};
  const auto found = boxes(rows, {8, 3}, 0, 9);
  ASSERT_EQ(found.size(), 1U);
  EXPECT_EQ(found[0], (Box{{2, 0}, {3, 3}}));
  const Placement columns{1, 1, 3, 1, 0, false};
  EXPECT_EQ(boxes(columns, {8, 3}, 0, 16), (std::vector<Box>{{{0, 1}, {8, 2}}}));
}

TEST(Placement, RefusesWhatIsNotThere) {
  EXPECT_THROW(boxes({0, 2, 9, 1, 0, false}, {8, 3}, 0, 1), Error);
  EXPECT_THROW(boxes({}, {8, 3}, 0, 25), Error);
}

}  // namespace
}  // namespace ridge::parallel
