#include "parallel/mpi_communicator.h"

#include "core/base/error.h"
#include "tests/parallel/collectives.h"
#include "tests/parallel/mpirun.h"

namespace ridge::parallel {
namespace {

TEST(Mpi, CollectivesOfProcesses) {
  if (launched_by_mpi()) GTEST_SKIP() << "this is a rank already";
  test::expect_ranks_pass(3, "MpiRanks.*");
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

TEST_F(MpiRanks, MetaMovesNothingAndAGpusMemoryIsRefused) {
  const DeviceSpan<float> meta{nullptr, 8, Device::meta}, gpu{nullptr, 8, Device::cuda};
  ranks().all_reduce(meta);
  ranks().all_reduce_async(meta)->wait();
  ranks().broadcast(meta, 1);
  EXPECT_THROW(ranks().all_reduce(gpu), Error);
}

}  // namespace
}  // namespace ridge::parallel
