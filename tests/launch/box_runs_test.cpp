// Common elements of two boxes, against a walk over every element.
#include "launch/box_runs.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

namespace ridge {
namespace {

using parallel::Box;

Box random_box(std::mt19937& rng, const std::vector<std::int64_t>& dims) {
  Box box;
  for (const std::int64_t dim : dims) {
    // Whole dims often: runs then go on over rows.
    const std::int64_t begin = rng() % 2 == 0 ? 0 : static_cast<std::int64_t>(rng()) % dim;
    const std::int64_t left = dim - begin;
    box.offset.push_back(begin);
    box.extent.push_back(rng() % 2 == 0 ? left : 1 + static_cast<std::int64_t>(rng()) % left);
  }
  return box;
}

// Place in the tensor of each element of a box, in order.
std::vector<std::int64_t> places(const Box& box, const std::vector<std::int64_t>& dims) {
  std::vector<std::int64_t> all;
  std::vector<std::int64_t> index(dims.size(), 0);
  for (std::int64_t i = 0; i < box.numel(); ++i) {
    std::int64_t place = 0;
    for (std::size_t d = 0; d < dims.size(); ++d) place = place * dims[d] + box.offset[d] + index[d];
    all.push_back(place);
    for (std::size_t d = dims.size(); d-- > 0 && ++index[d] == box.extent[d];) index[d] = 0;
  }
  return all;
}

TEST(BoxRunsTest, AreTheCommonElementsWithinARange) {
  std::mt19937 rng(3);
  int empty = 0, several = 0;
  for (int trial = 0; trial < 3000; ++trial) {
    std::vector<std::int64_t> dims;
    for (std::size_t d = 0; d < 1 + rng() % 4; ++d) dims.push_back(1 + static_cast<std::int64_t>(rng() % 6));
    const Box from = random_box(rng, dims), to = random_box(rng, dims);
    const auto from_places = places(from, dims), to_places = places(to, dims);
    const auto size = static_cast<std::int64_t>(from_places.size());
    const std::int64_t begin = static_cast<std::int64_t>(rng()) % size;
    const std::int64_t end = begin + 1 + static_cast<std::int64_t>(rng()) % (size - begin);

    std::map<std::int64_t, std::int64_t> wanted, found;  // place in from: place in to
    for (std::int64_t i = begin; i < end; ++i) {
      const auto at = std::find(to_places.begin(), to_places.end(), from_places[static_cast<std::size_t>(i)]);
      if (at != to_places.end()) wanted[i] = at - to_places.begin();
    }
    const BoxRuns runs(from, to);
    int calls = 0;
    std::int64_t before = -1;
    runs.for_each(begin, end, [&](std::int64_t a, std::int64_t b, std::int64_t count) {
      EXPECT_GT(a, before) << "ascending";
      before = a;
      ++calls;
      for (std::int64_t i = 0; i < count; ++i) EXPECT_TRUE(found.emplace(a + i, b + i).second);
    });
    EXPECT_EQ(found, wanted);
    if (!wanted.empty()) {
      EXPECT_LE(runs.first(), wanted.begin()->first);
      EXPECT_GT(runs.end(), wanted.rbegin()->first);
    }
    empty += runs.empty() ? 1 : 0;
    several += calls > 1 ? 1 : 0;
  }
  EXPECT_GT(empty, 100);
  EXPECT_GT(several, 100);
}

TEST(BoxRunsTest, WholeRowsAreOneRun) {
  const Box all{{0, 0, 0}, {4, 5, 6}}, rows{{1, 0, 0}, {2, 5, 6}}, columns{{0, 2, 0}, {4, 2, 6}};
  int calls = 0;
  BoxRuns(all, rows).for_each(0, 120, [&](std::int64_t from, std::int64_t to, std::int64_t count) {
    ++calls;
    EXPECT_EQ(from, 30);
    EXPECT_EQ(to, 0);
    EXPECT_EQ(count, 60);
  });
  EXPECT_EQ(calls, 1);
  BoxRuns(all, columns).for_each(0, 120, [&](std::int64_t, std::int64_t, std::int64_t count) {
    ++calls;
    EXPECT_EQ(count, 12);
  });
  EXPECT_EQ(calls, 5);
}

}  // namespace
}  // namespace ridge
