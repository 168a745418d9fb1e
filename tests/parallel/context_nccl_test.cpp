// Context parallelism of GPUs over NCCL, where there are some, against one rank on the CPU.
#include "core/base/cuda.h"
#include "parallel/context_benchmark.h"
#include "parallel/nccl_communicator.h"
#include "tests/parallel/context_attention.h"
#include "tests/parallel/mpirun.h"
#include "tests/test_device.h"

namespace ridge::parallel {
namespace {

using test::ContextCase;
using test::WholeAttention;

TEST(ContextNccl, AttentionOfGpus) {
  if (launched_by_mpi()) GTEST_SKIP() << "this is a rank already";
  if (!test::on_gpu()) GTEST_SKIP() << "RIDGE_TEST_DEVICE is not cuda";
  const auto gpus = static_cast<int>(cuda_devices().size());
  if (gpus < 2) GTEST_SKIP() << "needs 2 GPUs";
  test::expect_ranks_pass(gpus >= 4 ? 4 : 2, "*ContextNcclRanks.*");
}

class ContextNcclRanks : public ::testing::TestWithParam<ContextKind> {
 protected:
  void SetUp() override {
    if (!launched_by_mpi() || !test::on_gpu()) GTEST_SKIP() << "started by ContextNccl.AttentionOfGpus";
    static const bool kSelected = (cuda::select_device(test::mpi_process.session().local_rank()), true);
    static_cast<void>(kSelected);
    ranks_ = nccl_communicator(test::mpi_process.session().world());
  }
  void expect_as_on_one_rank(const ContextCase& c, DType dtype, double tolerance) {
    const WholeAttention whole(c);
    test::expect_as_on_one_rank(*ranks_, GetParam(), c, whole, dtype, Device::cuda, tolerance);
  }
  std::unique_ptr<Communicator> ranks_;
};
INSTANTIATE_TEST_SUITE_P(Kinds, ContextNcclRanks, ::testing::Values(ContextKind::ring, ContextKind::ulysses));

TEST_P(ContextNcclRanks, GiveWhatOneRankGives) {
  const ContextCase small{"small", 2, 96, 8, 4, 10}, shared{"shared heads", 1, 64, 8, 1, 32},
      windowed{"windowed", 2, 64, 4, 4, 16, 21};
  for (const ContextCase& c : {small, shared, windowed}) {
    expect_as_on_one_rank(c, DType::f64, 1e-10);
    expect_as_on_one_rank(c, DType::f32, 3e-5);
    expect_as_on_one_rank(c, DType::bf16, 3e-2);
  }
}

// Chunks of 128 tokens and heads of 64: what cuDNN takes.
TEST_P(ContextNcclRanks, GiveWhatOneRankGivesInBf16OfLongChunks) {
  expect_as_on_one_rank({"fused", 2, 1024, 8, 4, 64}, DType::bf16, 3e-2);
}

TEST_P(ContextNcclRanks, GiveTheSameBitsEveryTime) {
  const ContextCase c{"again", 1, 1024, 8, 4, 64};
  const WholeAttention whole(c);
  const auto run = [&] { return test::run_part(*ranks_, GetParam(), c, whole, DType::bf16, Device::cuda); };
  const auto first = run();
  for (int again = 0; again < 5; ++again) {
    const auto other = run();
    EXPECT_TRUE(test::same_bits(first.y, other.y));
    EXPECT_TRUE(test::same_bits(first.dqkv, other.dqkv));
  }
}

TEST_P(ContextNcclRanks, AreTimed) {
  const ContextTiming timing = benchmark_context(*ranks_, {GetParam(), 1, 4096, {8, 4, 128}});
  EXPECT_GT(timing.efficiency(), 0);
  if (ranks_->rank() == 0)
    printf("%d ranks, 4096 tokens: %.3g FLOP/s a rank, %.0f%% of one rank's own\n", timing.ranks,
           timing.flops_per_s(), 100 * timing.efficiency());
}

}  // namespace
}  // namespace ridge::parallel
