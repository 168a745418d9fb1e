// Tensor parallelism of GPUs over NCCL, where there are some, against one rank on the CPU.
#include <random>
#include <thread>

#include "core/base/cuda.h"
#include "parallel/nccl_communicator.h"
#include "parallel/peer_pieces.h"
#include "parallel/tensor_parallel_benchmark.h"
#include "tests/parallel/mpirun.h"
#include "tests/parallel/tensor_parallel_run.h"

namespace ridge::parallel {
namespace {

using test::TpCase;

void start_ranks(const std::string& filter) {
  if (launched_by_mpi()) GTEST_SKIP() << "this is a rank already";
  if (!test::on_gpu()) GTEST_SKIP() << "RIDGE_TEST_DEVICE is not cuda";
  const auto gpus = static_cast<int>(cuda_devices().size());
  if (gpus < 2) GTEST_SKIP() << "needs 2 GPUs";
  test::expect_ranks_pass(gpus >= 4 ? 4 : 2, filter);
}

TEST(TensorNccl, ModelsOfGpus) { start_ranks("TensorNcclRanks.*"); }
TEST(TensorNccl, PeersOfGpus) { start_ranks("TensorPeerRanks.*"); }

class TensorNcclRanks : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!launched_by_mpi() || !test::on_gpu()) GTEST_SKIP() << "started by TensorNccl.ModelsOfGpus";
    static const bool kSelected = (cuda::select_device(test::mpi_process.session().local_rank()), true);
    static_cast<void>(kSelected);
    ranks_ = nccl_communicator(world());
  }
  static Communicator& world() { return test::mpi_process.session().world(); }

  void expect_one_rank(const TpCase& c, bool sequence_parallel, int chunks, double bound,
                       bool peers = false) {
    const test::Tensors weights = test::weights_of(c);
    test::TpLayout layout{ranks_->size(), sequence_parallel, chunks};
    if (peers) layout.peers = group_of;
    const auto got = test::run_rank(c, weights, layout, *ranks_, world(), Device::cuda);
    std::string where;
    EXPECT_LT(test::worst_of(got, test::run_whole(c, weights), where), bound)
        << c.name << ", sequence parallel " << sequence_parallel << ", chunks " << chunks << ": " << where;
  }

  static std::shared_ptr<PeerGroup> group_of(Communicator& tp) {
    std::string why;
    std::shared_ptr<PeerGroup> group = peer_group(tp, &why, std::chrono::seconds(20));
    EXPECT_NE(group, nullptr) << why;
    return group;
  }

  void time(TensorParallelBenchmark benchmark, const char* by) {
    const TensorParallelTiming timing = benchmark_tensor_parallel(*ranks_, benchmark);
    EXPECT_GT(timing.overlapped, 0);
    if (ranks_->rank() != 0) return;
    printf(
        "%d ranks, %d chunks by %s: products %.3f ms, plain %.3f ms, overlapped %.3f ms, %.3g FLOP/s a "
        "rank\n",
        timing.ranks, benchmark.chunks, by, 1e3 * timing.products, 1e3 * timing.plain,
        1e3 * timing.overlapped, timing.flops_per_s());
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
    time(benchmark, "NCCL");
  }
}

class TensorPeerRanks : public TensorNcclRanks {};

TEST_F(TensorPeerRanks, GiveWhatOneRankGives) {
  TpCase plain, again, adapted, one;
  again.config.tied = again.config.qkv_bias = again.config.output_bias = true;
  again.recompute = models::Recompute::blocks;
  adapted.lora = true;
  one.batch = 1;
  for (const int chunks : {2, 4}) {
    for (TpCase c : {plain, again, adapted, one}) {
      expect_one_rank(c, true, chunks, c.lora ? 1e-6 : 1e-10, true);
      c.dtype = DType::f32;
      expect_one_rank(c, true, chunks, 3e-5, true);
    }
  }
}

Tensor random_on_gpu(const Shape& shape, std::uint64_t seed) {
  const Tensor t = Tensor::empty(shape, DType::bf16, Device::cuda);
  kernels::normal<bf16>(current_stream(Device::cuda), t.view<bf16>(), 0, 1, {seed, 0});
  return t;
}

/// z, and the gradients of x and of two weights, of one pass after another; the host waits for none of them.
std::vector<Tensor> passes(const TensorParallelism& how, const std::function<void()>& late) {
  const auto rank = static_cast<std::uint64_t>(how.tp->rank());
  Tensor up = random_on_gpu({384, 512}, 10 + rank), down = random_on_gpu({512, 384}, 20 + rank);
  for (Tensor* leaf : {&up, &down}) autograd::set_requires_grad(*leaf, true);
  std::vector<Tensor> all;
  for (std::uint64_t pass = 0; pass < 24; ++pass) {
    const std::int64_t B = 1 + static_cast<std::int64_t>(pass % 3), t = pass % 4 == 3 ? 1024 : 200;
    late();
    Tensor x = random_on_gpu({B, t, 512}, 1000 + 10 * pass + rank);
    autograd::set_requires_grad(x, true);
    const Tensor y = column_linear(how, x, {up}, {Tensor()}).first;
    const Tensor z = row_linear(how, y, down, {});
    autograd::backward(z, random_on_gpu(z.shape(), 2000 + 10 * pass + rank));
    all.push_back(z.detached());
    all.push_back(autograd::grad_of(x));
  }
  all.push_back(autograd::grad_of(up));
  all.push_back(autograd::grad_of(down));
  return all;
}

TEST_F(TensorPeerRanks, ManyPassesWhileSomeAreLate) {
  const std::vector<Tensor> want = passes({ranks_.get(), true, 1}, [] {});
  for (const int chunks : {2, 4}) {
    std::mt19937_64 engine(static_cast<std::uint64_t>(ranks_->rank()) + 1);
    const auto late = [&] {
      if (engine() % 4 == 0) std::this_thread::sleep_for(std::chrono::microseconds(engine() % 5000));
    };
    const auto peers = std::make_shared<PeerPieces>(group_of(*ranks_));
    const std::vector<Tensor> got = passes({ranks_.get(), true, chunks, peers}, late);
    for (std::size_t i = 0; i < want.size(); ++i)
      EXPECT_LT(test::normalized_error(got[i], want[i]), 2e-2) << "tensor " << i << ", chunks " << chunks;
  }
}

TEST_F(TensorPeerRanks, AreTimed) {
  const auto peers = std::make_shared<PeerPieces>(group_of(*ranks_));
  for (const std::int64_t batch : {1, 2}) {
    for (const int chunks : {2, 3, 4}) {
      TensorParallelBenchmark benchmark;
      benchmark.batch = batch;
      benchmark.tokens = 8192 / batch;
      benchmark.chunks = chunks;
      benchmark.peers = peers;
      time(benchmark, batch == 1 ? "copy engines, 1 sample" : "copy engines, 2 samples");
    }
  }
}

}  // namespace
}  // namespace ridge::parallel
