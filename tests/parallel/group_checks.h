// The communicators of a mesh against its own arithmetic, in the memory of any device.
#pragma once

#include <gtest/gtest.h>

#include <vector>

#include "parallel/groups.h"
#include "tests/parallel/messages.h"

namespace ridge::test {

/// Meshes of so many ranks; 1, 2, 3, 4, 6 or 8.
inline std::vector<parallel::Mesh> meshes_of(int ranks) {
  using parallel::Mesh;
  const int n = ranks, half = ranks / 2;
  std::vector<Mesh> meshes{Mesh({n, 1, 1, 1, 1}), Mesh({1, 1, n, 1, 1}), Mesh({1, 1, 1, n, 1}),
                           Mesh({1, 1, 1, 1, n})};
  if (n % 2 == 0) {
    meshes.push_back(Mesh({half, 1, 2, 1, 1}));
    meshes.push_back(Mesh({1, 2, 1, half, 1}));
    meshes.push_back(Mesh({1, 1, half, 2, 1}));
  }
  if (n == 8) meshes.push_back(Mesh({2, 1, 1, 2, 2}));
  return meshes;
}

/// Every group has the ranks that the mesh says, in its order; `world` is the one that ranks are counted in.
inline void expect_groups(parallel::Groups& groups, const parallel::Communicator& world, Device device) {
  using parallel::Axis;
  const int me = world.rank();
  const parallel::Mesh& mesh = groups.mesh();
  EXPECT_EQ(groups.rank(), me);
  expect_group(groups.world(), me, every(1, 0, world.size()), device);
  for (int a = 0; a < parallel::kAxes; ++a) {
    const Axis axis = static_cast<Axis>(a);
    EXPECT_EQ(groups.along(axis).size(), mesh.size(axis));
    EXPECT_EQ(groups.along(axis).rank(), groups.coordinate(axis));
    expect_group(groups.along(axis), me, mesh.group(me, {axis}), device);
  }
  expect_group(groups.sharding(), me, mesh.group(me, {Axis::shard, Axis::cp}), device);
  const int tp = mesh.size(Axis::tp);
  for (int copies = 1; copies <= tp; ++copies) {
    if (tp % copies != 0) continue;
    const int first = me - groups.coordinate(Axis::tp) % copies;
    expect_group(groups.kv_copies(copies), me, every(1, first, first + copies), device);
    EXPECT_EQ(&groups.kv_copies(copies), &groups.kv_copies(copies));
  }
}

}  // namespace ridge::test
