// Tensor parallelism of GPUs over NCCL, where there are some, against one rank on the CPU.
#include "core/base/cuda.h"
#include "parallel/nccl_communicator.h"
#include "parallel/tensor_parallel_benchmark.h"
#include "tests/parallel/mpirun.h"
#include "tests/parallel/tensor_parallel_run.h"

namespace ridge::parallel {
namespace {

using test::TpCase;

TEST(TensorNccl, ModelsOfGpus) {
  if (launched_by_mpi()) GTEST_SKIP() << "this is a rank already";
  if (!test::on_gpu()) GTEST_SKIP() << "RIDGE_TEST_DEVICE is not cuda";
  const auto gpus = static_cast<int>(cuda_devices().size());
  if (gpus < 2) GTEST_SKIP() << "needs 2 GPUs";
  test::expect_ranks_pass(gpus >= 4 ? 4 : 2, "TensorNcclRanks.*");
}

class TensorNcclRanks : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!launched_by_mpi() || !test::on_gpu()) GTEST_SKIP() << "started by TensorNccl.ModelsOfGpus";
    static const bool kSelected = (cuda::select_device(test::mpi_process.session().local_rank()), true);
    static_cast<void>(kSelected);
    ranks_ = nccl_communicator(world());
  }
  static Communicator& world() { return test::mpi_process.session().world(); }

  void expect_one_rank(const TpCase& c, bool sequence_parallel, int chunks, double bound) {
    const test::Tensors weights = test::weights_of(c);
    const test::TpLayout layout{ranks_->size(), sequence_parallel, chunks};
    const auto got = test::run_rank(c, weights, layout, *ranks_, world(), Device::cuda);
    std::string where;
    EXPECT_LT(test::worst_of(got, test::run_whole(c, weights), where), bound)
        << c.name << ", sequence parallel " << sequence_parallel << ", chunks " << chunks << ": " << where;
  }

  std::unique_ptr<Communicator> ranks_;
};

TEST_F(TensorNcclRanks, GiveWhatOneRankGives) {
  TpCase plain, tied, adapted, one;
  tied.config.tied = true;
  tied.config.qkv_bias = tied.config.output_bias = true;
  tied.recompute = models::Recompute::blocks;
  adapted.lora = true;
  one.batch = 1;
  for (const bool sequence_parallel : {false, true}) {
    for (const int chunks : {1, 2, 5}) {
      for (TpCase c : {plain, tied, adapted, one}) {
        expect_one_rank(c, sequence_parallel, chunks, c.lora ? 1e-6 : 1e-10);
        c.dtype = DType::f32;
        expect_one_rank(c, sequence_parallel, chunks, 3e-5);
      }
    }
  }
}

TEST_F(TensorNcclRanks, AreTimed) {
  for (const int chunks : {2, 4}) {
    TensorParallelBenchmark benchmark;
    benchmark.chunks = chunks;
    const TensorParallelTiming timing = benchmark_tensor_parallel(*ranks_, benchmark);
    EXPECT_GT(timing.overlapped, 0);
    if (ranks_->rank() == 0)
      printf("%d ranks, %d chunks: products %.3f ms, plain %.3f ms, overlapped %.3f ms, %.3g FLOP/s a rank\n",
             timing.ranks, chunks, 1e3 * timing.products, 1e3 * timing.plain, 1e3 * timing.overlapped,
             timing.flops_per_s());
  }
}

}  // namespace
}  // namespace ridge::parallel
