#include "parallel/mesh.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>

#include "core/base/error.h"

namespace ridge::parallel {
namespace {

const Mesh kMesh({2, 3, 2, 1, 4});  // pp, replicate, shard, cp, tp: 48 ranks

TEST(Mesh, CoordinatesAndRanksAreInverse) {
  ASSERT_EQ(kMesh.ranks(), 48);
  std::set<Mesh::Coordinates> places;
  for (int rank = 0; rank < kMesh.ranks(); ++rank) {
    const Mesh::Coordinates place = kMesh.coordinates(rank);
    for (int a = 0; a < kAxes; ++a) {
      EXPECT_GE(place[static_cast<std::size_t>(a)], 0);
      EXPECT_LT(place[static_cast<std::size_t>(a)], kMesh.size(static_cast<Axis>(a)));
    }
    EXPECT_EQ(kMesh.rank_of(place), rank);
    EXPECT_TRUE(places.insert(place).second);
  }
}

TEST(Mesh, NeighboursInTpAreNeighbouringRanksAndPpIsOutermost) {
  EXPECT_EQ(kMesh.coordinates(1), (Mesh::Coordinates{0, 0, 0, 0, 1}));
  EXPECT_EQ(kMesh.coordinates(4), (Mesh::Coordinates{0, 0, 1, 0, 0}));
  EXPECT_EQ(kMesh.coordinates(8), (Mesh::Coordinates{0, 1, 0, 0, 0}));
  EXPECT_EQ(kMesh.coordinates(24), (Mesh::Coordinates{1, 0, 0, 0, 0}));
}

TEST(Mesh, GroupsAreAscendingContainTheRankAndPartitionTheMesh) {
  const std::vector<std::vector<Axis>> choices{{},
                                               {Axis::tp},
                                               {Axis::replicate, Axis::shard},
                                               {Axis::shard, Axis::replicate},
                                               {Axis::pp, Axis::tp},
                                               {Axis::pp, Axis::replicate, Axis::shard, Axis::cp, Axis::tp}};
  for (const auto& axes : choices) {
    std::size_t extent = 1;
    for (const Axis axis : axes) extent *= static_cast<std::size_t>(kMesh.size(axis));
    std::map<int, int> times;
    for (int rank = 0; rank < kMesh.ranks(); ++rank) {
      const std::vector<int> group = kMesh.group(rank, axes);
      EXPECT_EQ(group.size(), extent);
      EXPECT_TRUE(std::is_sorted(group.begin(), group.end()));
      EXPECT_TRUE(std::find(group.begin(), group.end(), rank) != group.end());
      for (const int other : group) EXPECT_EQ(kMesh.group(other, axes), group);
    }
  }
  EXPECT_EQ(kMesh.group(5, {Axis::tp}), (std::vector<int>{4, 5, 6, 7}));
  EXPECT_EQ(kMesh.group(5, {Axis::shard}), (std::vector<int>{1, 5}));
  EXPECT_EQ(kMesh.group(26, {Axis::replicate}), (std::vector<int>{26, 34, 42}));
}

TEST(Mesh, DataRanksCountReplicatesThenShards) {
  EXPECT_EQ(kMesh.data_ranks(), 6);
  for (int rank = 0; rank < kMesh.ranks(); ++rank) {
    const Mesh::Coordinates place = kMesh.coordinates(rank);
    EXPECT_EQ(kMesh.data_rank(rank), place[1] * 2 + place[2]);
    for (const int same_samples : kMesh.group(rank, {Axis::pp, Axis::cp, Axis::tp}))
      EXPECT_EQ(kMesh.data_rank(same_samples), kMesh.data_rank(rank));
  }
}

TEST(Mesh, SaysWhatItIs) {
  EXPECT_EQ(Mesh({1, 1, 1, 1, 1}).describe(), "1 rank");
  EXPECT_EQ(Mesh({1, 2, 4, 1, 1}).describe(), "replicate 2 x shard 4");
  EXPECT_EQ(kMesh.describe(), "pp 2 x replicate 3 x shard 2 x tp 4");
}

TEST(Mesh, WhatIsOutsideIsAnError) {
  EXPECT_THROW(Mesh({1, 0, 1, 1, 1}), Error);
  EXPECT_THROW(Mesh({1, -2, 1, 1, 1}), Error);
  EXPECT_THROW(kMesh.coordinates(-1), Error);
  EXPECT_THROW(kMesh.coordinates(48), Error);
  EXPECT_THROW(kMesh.rank_of({0, 3, 0, 0, 0}), Error);
  EXPECT_THROW(kMesh.rank_of({0, 0, 0, 0, -1}), Error);
}

}  // namespace
}  // namespace ridge::parallel
