#include "parallel/mpi_communicator.h"

#include <chrono>
#include <thread>

#include "core/base/error.h"
#include "tests/parallel/group_checks.h"
#include "tests/parallel/messages.h"
#include "tests/parallel/mpirun.h"

namespace ridge::parallel {
namespace {

TEST(Mpi, CollectivesOfProcesses) {
  if (launched_by_mpi()) GTEST_SKIP() << "this is a rank already";
  test::expect_ranks_pass(3, "MpiRanks.*");
}

// Where the receiver cannot read the sender's memory, both have to work on a large message.
TEST(Mpi, MessagesThatTakeBothEnds) {
  if (launched_by_mpi()) GTEST_SKIP() << "this is a rank already";
  test::expect_ranks_pass(3, "MpiRanks.*Message*:MpiRanks.*Send*",
                          {"OMPI_MCA_btl_vader_single_copy_mechanism=none"});
}

TEST(Mpi, SlowMoreThanACountOfMpis) {
  if (launched_by_mpi()) GTEST_SKIP() << "this is a rank already";
  test::expect_ranks_pass(2, "MpiLarge.*");
}

// 2^28 bytes and some: gathered, then summed and scattered.
TEST(MpiLarge, GoInPieces) {
  if (!launched_by_mpi()) GTEST_SKIP() << "started by Mpi.SlowMoreThanACountOfMpis";
  Communicator& world = test::mpi_process.session().world();
  const std::size_t count = (std::size_t{1} << 27) + 3;
  const auto value = [](int rank, std::size_t i) {
    return static_cast<std::uint8_t>((i * 2654435761u >> 13) + static_cast<std::size_t>(rank));
  };
  std::vector<std::uint8_t> mine(count), all(2 * count);
  for (std::size_t i = 0; i < count; ++i) mine[i] = value(world.rank(), i);
  world.all_gather_async(std::span<const std::uint8_t>(mine), std::span<std::uint8_t>(all))->wait();
  std::size_t wrong = 0;
  for (int rank = 0; rank < 2; ++rank) {
    for (std::size_t i = 0; i < count; ++i)
      wrong += all[static_cast<std::size_t>(rank) * count + i] != value(rank, i);
  }
  EXPECT_EQ(wrong, 0u);
  for (std::uint8_t& x : all) x &= 63;
  const std::span<std::uint8_t> in_place(all.data() + static_cast<std::size_t>(world.rank()) * count, count);
  world.reduce_scatter(std::span<const std::uint8_t>(all), in_place);
  for (std::size_t i = 0; i < count; ++i) wrong += in_place[i] != 2 * (value(world.rank(), i) & 63);
  EXPECT_EQ(wrong, 0u);
}

class MpiRanks : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!launched_by_mpi()) GTEST_SKIP() << "started by Mpi.CollectivesOfProcesses";
  }
  Communicator& ranks() { return test::mpi_process.session().world(); }
};

TEST_F(MpiRanks, GiveEveryCollective) {
  ASSERT_EQ(ranks().size(), 3);
  test::expect_collectives(ranks(), Device::cpu);
}

TEST_F(MpiRanks, AsyncCollectivesKeepTheirOrder) {
  std::vector<std::vector<float>> values;
  std::vector<std::unique_ptr<Pending>> pending;
  for (std::size_t b = 0; b < 20; ++b) values.emplace_back(b + 1, static_cast<float>(b));
  std::vector<float> all(3), piece(1);
  const std::vector<float> mine{static_cast<float>(ranks().rank())}, ones(3, 1);
  for (auto& v : values) pending.push_back(ranks().all_reduce_async(std::span<float>(v)));
  pending.push_back(ranks().all_gather_async(std::span<const float>(mine), std::span<float>(all)));
  pending.push_back(ranks().reduce_scatter_async(std::span<const float>(ones), std::span<float>(piece)));
  for (auto it = pending.rbegin(); it != pending.rend(); ++it) (*it)->wait();
  for (std::size_t b = 0; b < values.size(); ++b)
    EXPECT_EQ(values[b], std::vector<float>(b + 1, 3 * static_cast<float>(b)));
  EXPECT_EQ(all, (std::vector<float>{0, 1, 2}));
  EXPECT_EQ(piece, std::vector<float>{3});
}

TEST_F(MpiRanks, GiveMessages) { test::expect_messages(ranks(), Device::cpu); }

// Small ones that MPI sends at once, and large ones for which it wants to meet.
TEST_F(MpiRanks, ASendWaitsForNobody) {
  for (const std::size_t count : {1, 1 << 10, 1 << 20}) test::expect_sends_are_buffered(ranks(), count);
}

TEST_F(MpiRanks, Split) {
  test::expect_splits(ranks(), Device::cpu);
  const auto pair = ranks().split(ranks().rank() == 1 ? 5 : 2);
  test::expect_collectives(*pair, Device::cpu);
  test::expect_messages(*pair, Device::cpu);
}

TEST_F(MpiRanks, ALargeMessageMovesWhileItsSenderIsBusyElsewhere) {
  std::vector<float> mine(1 << 22, static_cast<float>(ranks().rank())), got(1 << 22, -1);
  ranks().barrier();
  const auto begin = std::chrono::steady_clock::now();
  if (ranks().rank() == 0) {
    ranks().exchange({ranks().send_to(1, std::span(mine))});
    std::this_thread::sleep_for(std::chrono::seconds(2));
  }
  if (ranks().rank() == 1) {
    std::this_thread::sleep_for(std::chrono::milliseconds(300));  // until the sender is away
    ranks().exchange({ranks().receive_from(0, std::span(got))});
    EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::milliseconds(1500));
    EXPECT_EQ(got, std::vector<float>(1 << 22, 0));
  }
  ranks().barrier();
}

TEST_F(MpiRanks, AMessageThatIsNotExpectedIsAnError) {
  std::vector<float> mine(7), got(5);
  ranks().exchange({ranks().send_to(test::neighbour(ranks(), 1), std::span(mine))});
  EXPECT_THROW(ranks().exchange({ranks().receive_from(test::neighbour(ranks(), -1), std::span(got))}), Error);
  ranks().exchange({ranks().send_to(test::neighbour(ranks(), 1), std::span(got))});
  EXPECT_THROW(ranks().exchange({ranks().receive_from(test::neighbour(ranks(), -1), std::span(mine))}),
               Error);
}

TEST_F(MpiRanks, AReceiveThatNobodyWaitsForWritesNoMore) {
  const int next = test::neighbour(ranks(), 1), before = test::neighbour(ranks(), -1);
  std::vector<float> given_up(1000, -1), mine(1000, 1), got(1000);
  ranks().exchange_async({ranks().receive_from(before, std::span(given_up))});
  ranks().barrier();
  ranks().exchange({ranks().send_to(next, std::span(mine)), ranks().receive_from(before, std::span(got))});
  EXPECT_EQ(got, mine);
  EXPECT_EQ(given_up, std::vector<float>(1000, -1));
}

TEST(Mpi, GroupsOfProcesses) {
  if (launched_by_mpi()) GTEST_SKIP() << "this is a rank already";
  test::expect_ranks_pass(4, "MpiMesh.*");
}

TEST(MpiMesh, HasACommunicatorOfEachAxis) {
  if (!launched_by_mpi()) GTEST_SKIP() << "started by Mpi.GroupsOfProcesses";
  Communicator& world = test::mpi_process.session().world();
  for (const Mesh& mesh : test::meshes_of(world.size())) {
    Groups groups(mesh, world);
    test::expect_groups(groups, world, Device::cpu);
  }
}

TEST(Mpi, AnAbortOfAPartEndsAll) {
  if (launched_by_mpi()) GTEST_SKIP() << "this is a rank already";
  const test::Outcome outcome = test::run_tests_as_ranks(3, "MpiAbort.*");
  EXPECT_EQ(outcome.exit_code, 7) << outcome.err;
  EXPECT_LT(outcome.seconds, 30);
}

TEST(MpiAbort, OfAGroupOfOne) {
  if (!launched_by_mpi()) GTEST_SKIP() << "started by Mpi.AnAbortOfAPartEndsAll";
  Communicator& world = test::mpi_process.session().world();
  const auto alone = world.split(world.rank());
  if (world.rank() == 2) alone->abort("out of paper", 7);
  float value = 0;
  world.exchange({world.receive_from(2, std::span(&value, 1))});
}

TEST_F(MpiRanks, MetaMovesNothingAndAGpusMemoryIsRefused) {
  const DeviceSpan<float> meta{nullptr, 8, Device::meta}, gpu{nullptr, 8, Device::cuda};
  ranks().all_reduce(meta);
  ranks().all_reduce_async(meta)->wait();
  ranks().broadcast(meta, 1);
  ranks().exchange({ranks().receive_from(1, meta)});
  EXPECT_THROW(ranks().exchange({ranks().send_to(1, gpu)}), Error);
  EXPECT_THROW(ranks().all_reduce(gpu), Error);
}

}  // namespace
}  // namespace ridge::parallel
