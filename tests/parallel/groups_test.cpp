#include "parallel/groups.h"

#include "core/base/error.h"
#include "tests/parallel/group_checks.h"

namespace ridge::parallel {
namespace {

class MeshOf : public ::testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Ranks, MeshOf, ::testing::Values(1, 2, 3, 4, 6, 8));

TEST_P(MeshOf, RanksHasACommunicatorOfEachAxis) {
  for (const Mesh& mesh : test::meshes_of(GetParam())) {
    run_ranks(GetParam(), [&](Communicator& world) {
      Groups groups(mesh, world);
      test::expect_groups(groups, world, Device::cpu);
    });
  }
}

TEST(Groups, AreMovedAndGoOn) {
  run_ranks(4, [](Communicator& world) {
    Groups before(Mesh({1, 1, 2, 1, 2}), world);
    Groups groups = std::move(before);
    test::expect_groups(groups, world, Device::cpu);
  });
}

TEST(Groups, WrapCarriesAllOfThem) {
  run_ranks(4, [](Communicator& world) {
    int wrapped = 0;
    Communicator* made = nullptr;
    Groups groups(Mesh({1, 2, 1, 1, 2}), world, [&](Communicator& host) {
      EXPECT_EQ(&host, &world);
      ++wrapped;
      auto communicator = host.split(0);
      made = communicator.get();
      return communicator;
    });
    EXPECT_EQ(wrapped, 1);
    EXPECT_EQ(&groups.world(), made);
    test::expect_groups(groups, world, Device::cpu);
  });
}

// Messages of context parallel attention would wait behind gathers of weights.
TEST(Groups, ShardingIsApartFromContextParallel) {
  run_ranks(2, [](Communicator& world) {
    Groups rings(Mesh({1, 1, 1, 2, 1}), world), shards(Mesh({1, 1, 2, 1, 1}), world);
    EXPECT_NE(&rings.sharding(), &rings.along(Axis::cp));
    EXPECT_EQ(&shards.sharding(), &shards.along(Axis::shard));
  });
}

TEST(Groups, OfAnotherNumberOfRanksAreAnError) {
  const auto self = self_communicator();
  EXPECT_THROW(Groups(Mesh({1, 1, 2, 1, 1}), *self), Error);
  EXPECT_THROW(Groups::simulated(Mesh({1, 1, 2, 1, 1}), 2, SimulatedNetwork{1e9, 0}), Error);
}

TEST(Groups, RunsOfCopiesDivideTp) {
  run_ranks(4, [](Communicator& world) {
    Groups groups(Mesh({1, 1, 1, 1, 4}), world);
    for (const int copies : {0, -1, 3, 8}) EXPECT_THROW(groups.kv_copies(copies), Error);
  });
}

TEST(Groups, ThatAreNotSimulatedHaveNoTimes) {
  const auto self = self_communicator();
  const Groups groups(Mesh({1, 1, 1, 1, 1}), *self);
  EXPECT_THROW(groups.time(Axis::tp), Error);
  EXPECT_THROW(groups.world_time(), Error);
}

}  // namespace
}  // namespace ridge::parallel
