// Sums by one kernel: among threads, and on GPUs where there are some, against sums in the order of ranks.
#include "parallel/one_shot_reduce.h"

#include <cstdio>
#include <random>
#include <thread>

#include "core/base/profiler.h"
#include "parallel/collective_ops.h"
#include "parallel/nccl_communicator.h"
#include "parallel/overlapped_linear.h"
#include "tests/parallel/mpirun.h"
#include "tests/parallel/tensor_parallel_run.h"
#include "tests/parallel/thread_peers.h"

namespace ridge::parallel {
namespace {

using test::HerePeers;
using test::TpCase;
using test::values_of;

Tensor random_tensor(const Shape& shape, DType dtype, std::uint64_t seed, Device device = Device::cpu) {
  std::mt19937_64 engine(seed);
  std::uniform_real_distribution<float> draw(-2, 2);
  std::vector<float> values(static_cast<std::size_t>(numel(shape)));
  for (float& v : values) v = draw(engine);
  return Tensor::from(values, shape).to(dtype).on(device);
}

/// In f32, rounded to their dtype.
std::vector<double> sum_of_two(const Tensor& a, const Tensor& b) {
  const std::vector<double> x = values_of(a), y = values_of(b);
  std::vector<float> sums;
  for (std::size_t i = 0; i < x.size(); ++i)
    sums.push_back(static_cast<float>(x[i]) + static_cast<float>(y[i]));
  return values_of(Tensor::from(sums, a.shape()).to(a.dtype()));
}

/// All ranks' values added up in order in f32, and rounded to x's dtype.
std::vector<double> sum_in_order(Communicator& host, const Tensor& x) {
  const std::vector<double> own = values_of(x.on(Device::cpu));
  const std::vector<float> mine(own.begin(), own.end());
  std::vector<float> all(mine.size() * static_cast<std::size_t>(host.size()));
  host.all_gather(std::span<const float>(mine), std::span<float>(all));
  std::vector<float> sums(all.begin(), all.begin() + static_cast<std::ptrdiff_t>(mine.size()));
  for (std::size_t i = mine.size(); i < all.size(); ++i) sums[i % mine.size()] += all[i];
  return values_of(Tensor::from(sums, x.shape()).to(x.dtype()));
}

std::shared_ptr<OneShotReduce> among_threads(Communicator& tp, std::int64_t largest = 1 << 20) {
  return OneShotReduce::make(std::make_unique<HerePeers>(tp), Device::cpu,
                             {largest, std::chrono::seconds(60)});
}

/// How many sums were made by the kernel while `body` ran on this thread.
std::int64_t sums_of(const std::function<void()>& body) {
  Profiler profiler;
  const ProfilerScope scope(current_stream(Device::cpu), &profiler);
  body();
  std::int64_t calls = 0;
  for (const OpSummary& op : profiler.summary()) calls += op.op == "all_reduce_small" ? op.calls : 0;
  return calls;
}

TEST(OneShotReduce, SumsInTheOrderOfRanks) {
  for (const int size : {2, 3, 8}) {
    run_ranks(size, [&](Communicator& tp) {
      const auto one_shot = among_threads(tp);
      std::uint64_t seed = static_cast<std::uint64_t>(tp.rank()) + 1;
      for (const DType dtype : {DType::f32, DType::bf16}) {
        for (const Shape& shape : {Shape{1}, Shape{3, 1, 129}, Shape{64, 4096 / 8}, Shape{2, 7, 1001}}) {
          const Tensor x = random_tensor(shape, dtype, seed += 100);
          const std::vector<double> want = sum_in_order(tp, x);
          ASSERT_TRUE(one_shot->takes(x));
          const Tensor part = x.contiguous_copy(), y = random_tensor(shape, dtype, seed += 100);
          one_shot->all_reduce(x);
          EXPECT_EQ(values_of(x), want) << size << " ranks";
          const std::vector<double> added = sum_of_two(y, x);
          one_shot->add_all_reduced(part, y);
          EXPECT_EQ(values_of(y), added) << size << " ranks";
        }
      }
    });
  }
}

TEST(OneShotReduce, TakesWhatItHasRoomFor) {
  run_ranks(2, [](Communicator& tp) {
    const auto one_shot = among_threads(tp, 4096);
    const auto takes = [&](std::int64_t n, DType dtype, Device device = Device::cpu) {
      return one_shot->takes(Tensor::empty({n}, dtype, device));
    };
    EXPECT_TRUE(takes(1024, DType::f32) && takes(2048, DType::bf16) && takes(1, DType::bf16));
    EXPECT_FALSE(takes(1025, DType::f32) || takes(2049, DType::bf16) || takes(0, DType::f32));
    EXPECT_FALSE(takes(8, DType::f64) || takes(8, DType::i32) || takes(8, DType::f32, Device::meta));
    const Tensor x = Tensor::zeros({8, 8}, DType::f32);
    EXPECT_THROW(one_shot->all_reduce(x.sliced(1, 0, 4)), Error);
    EXPECT_THROW(one_shot->all_reduce(Tensor::zeros({5000}, DType::f32)), Error);
    EXPECT_THROW(one_shot->add_all_reduced(x, Tensor::zeros({8, 9}, DType::f32)), Error);
    EXPECT_THROW(one_shot->add_all_reduced(x, x), Error);
  });
}

// As the collective has them, in several pieces where regions have room for a few rows; sums go between.
TEST(OneShotReduce, GathersColumnsAsCollectivesDo) {
  for (const int size : {2, 3, 8}) {
    run_ranks(size, [&](Communicator& tp) {
      const auto one_shot = among_threads(tp, 400);
      for (const DType dtype : {DType::f32, DType::bf16}) {
        for (const Shape& shape : {Shape{1, 67}, Shape{7, 67}, Shape{5, 3}, Shape{9, 128}}) {
          const std::int64_t each = (shape[1] + size - 1) / size;
          const std::int64_t begin = std::min(shape[1], tp.rank() * each);
          const Tensor mine = random_tensor({shape[0], std::min(each, shape[1] - begin)}, dtype,
                                            200 + static_cast<std::uint64_t>(tp.rank()));
          const Tensor y = random_tensor(shape, dtype, 300 + static_cast<std::uint64_t>(tp.rank()));
          y.sliced(1, begin, begin + mine.dim(1)).copy_from(mine);
          ASSERT_TRUE(one_shot->gathers(y));
          one_shot->gather_columns(y);
          EXPECT_EQ(values_of(y), values_of(gather_columns(mine, shape[1], tp))) << size << " ranks";
          const Tensor x = random_tensor({5}, dtype, 400);
          const std::vector<double> want = sum_in_order(tp, x);
          one_shot->all_reduce(x);
          EXPECT_EQ(values_of(x), want);
        }
      }
      EXPECT_FALSE(one_shot->gathers(Tensor::zeros({1, 101 * size}, DType::f32)));
      EXPECT_FALSE(one_shot->gathers(Tensor::zeros({8}, DType::f32)));
      EXPECT_THROW(one_shot->gather_columns(Tensor::zeros({4, 8}, DType::f32).sliced(1, 0, 4)), Error);
    });
  }
}

// Memory that cannot be shared.
class NoPeers final : public PeerGroup {
 public:
  explicit NoPeers(Communicator& ranks) : inner_(ranks) { trouble_ = "no memory here"; }
  int rank() const override { return inner_.rank(); }
  int size() const override { return inner_.size(); }
  std::optional<PeerBuffer> share(void*, std::int64_t) override { return std::nullopt; }
  PeerQueue& compute() override { return inner_.compute(); }
  std::unique_ptr<PeerQueue> make_queue() override { return inner_.make_queue(); }

 private:
  HerePeers inner_;
};

TEST(OneShotReduce, NoneWhereMemoryIsNotShared) {
  std::string why;
  EXPECT_EQ(one_shot_reduce(*self_communicator(), Device::cpu, &why), nullptr);
  EXPECT_NE(why, "");
  run_ranks(9, [](Communicator& tp) {
    std::string reason;
    EXPECT_EQ(OneShotReduce::make(std::make_unique<HerePeers>(tp), Device::cpu, {}, &reason), nullptr);
    EXPECT_EQ(reason, "one kernel sums over 8 ranks at most, not 9");
    EXPECT_EQ(OneShotReduce::make(std::make_unique<NoPeers>(*self_communicator()), Device::cpu, {}, &reason),
              nullptr);
    EXPECT_EQ(reason, "no memory here");
  });
}

TEST(OneShotReduce, SumsOutputsOfLayersWithTheirGradients) {
  run_ranks(3, [](Communicator& tp) {
    const auto one_shot = among_threads(tp, 8000);
    const auto seed = static_cast<std::uint64_t>(tp.rank());
    for (const std::int64_t tokens : {5, 500}) {  // those of the second are left to collectives
      const Tensor x = random_tensor({2, tokens, 6}, DType::f32, 40 + seed);
      const Tensor weight = random_tensor({33, 6}, DType::f32, 50 + seed);
      const Tensor added = random_tensor({33}, DType::f32, 60);
      std::vector<Tensor> got, want;
      const auto pass = [&](const TensorParallelism& how, std::vector<Tensor>& out) {
        Tensor w = weight.contiguous_copy(), bias = added.contiguous_copy();
        for (Tensor* leaf : {&w, &bias}) autograd::set_requires_grad(*leaf, true);
        const Tensor y = row_linear(how, x, w, bias);
        autograd::backward(y, random_tensor(y.shape(), DType::f32, 70));
        out = {y.detached(), autograd::grad_of(w), autograd::grad_of(bias)};
      };
      EXPECT_EQ(sums_of([&] { pass({&tp, false, 2, nullptr, one_shot}, got); }), tokens == 5 ? 1 : 0);
      pass({&tp, false, 2}, want);
      for (std::size_t i = 0; i < want.size(); ++i)
        EXPECT_LT(test::normalized_error(got[i], want[i]), 1e-6) << i;
    }
    Tensor part = random_tensor({2, 3, 7}, DType::bf16, seed);
    const std::vector<double> want = sum_in_order(tp, part);
    EXPECT_EQ(sums_of([&] { part = reduce_from_tp(part, tp, one_shot.get()); }), 1);
    EXPECT_EQ(values_of(part), want);
  });
}

TEST(OneShotReduce, ModelsGiveWhatOneRankGives) {
  TpCase plain, tied, adapted;
  plain.dtype = tied.dtype = adapted.dtype = DType::f32;
  tied.config.tied = tied.config.qkv_bias = tied.config.output_bias = true;
  tied.recompute = models::Recompute::blocks;
  adapted.lora = true;
  for (const TpCase& c : {plain, tied, adapted}) {
    const test::Tensors weights = test::weights_of(c);
    const test::TpResult want = test::run_whole(c, weights);
    for (const bool sequence_parallel : {false, true}) {  // sums of cut sequences are left to collectives
      run_ranks(4, [&](Communicator& tp) {
        test::TpLayout layout{4, sequence_parallel, 2};
        layout.one_shot = [](Communicator& ranks) { return among_threads(ranks); };
        test::TpResult got;
        const std::int64_t sums =
            sums_of([&] { got = test::run_rank(c, weights, layout, tp, tp, Device::cpu); });
        EXPECT_EQ(sums > 0, !sequence_parallel);
        std::string where;
        EXPECT_LT(test::worst_of(got, want, where), 3e-5) << where;
      });
    }
  }
}

void start_ranks(const std::string& filter, int most) {
  if (launched_by_mpi()) GTEST_SKIP() << "this is a rank already";
  if (!test::on_gpu()) GTEST_SKIP() << "RIDGE_TEST_DEVICE is not cuda";
  const auto gpus = static_cast<int>(cuda_devices().size());
  if (gpus < 2) GTEST_SKIP() << "needs 2 GPUs";
  test::expect_ranks_pass(std::min(gpus >= 8 ? 8 : (gpus >= 4 ? 4 : 2), most), filter);
}

TEST(OneShot, SumsOfGpus) { start_ranks("OneShotRanks.*", 8); }
TEST(OneShot, SumsOfTwoGpus) { start_ranks("OneShotRanks.*", 2); }

class OneShotRanks : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!launched_by_mpi() || !test::on_gpu()) GTEST_SKIP() << "started by OneShot.SumsOfGpus";
    static const bool kSelected = (cuda::select_device(test::mpi_process.session().local_rank()), true);
    static_cast<void>(kSelected);
    nccl_ = nccl_communicator(world());
    one_shot_ = made(world());
    engine_.seed(static_cast<std::uint64_t>(world().rank()) + 1);
  }
  static Communicator& world() { return test::mpi_process.session().world(); }
  static Stream& compute() { return current_stream(Device::cuda); }
  static std::shared_ptr<OneShotReduce> made(Communicator& ranks) {
    std::string why;
    std::shared_ptr<OneShotReduce> one_shot =
        one_shot_reduce(ranks, Device::cuda, &why, {1 << 20, std::chrono::seconds(20)});
    EXPECT_NE(one_shot, nullptr) << why;
    return one_shot;
  }
  void lag() {
    if (engine_() % 7 == 0) std::this_thread::sleep_for(std::chrono::microseconds(engine_() % 3000));
  }
  std::uint64_t seed() { return 1000 * ++tensors_ + static_cast<std::uint64_t>(world().rank()); }

  std::unique_ptr<Communicator> nccl_;
  std::shared_ptr<OneShotReduce> one_shot_;
  std::mt19937_64 engine_;
  std::uint64_t tensors_ = 0;
};

TEST_F(OneShotRanks, GiveTheBitsOfSumsInOrderAndTheSumsOfNccl) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const std::int64_t n : {1, 7, 4096, 8192, 64 * 4096 + 3, 1 << 18}) {
      if (n * static_cast<std::int64_t>(size_of(dtype)) > 1 << 20) continue;
      const Tensor all = random_tensor({n + 1}, dtype, seed(), Device::cuda);
      for (const std::int64_t offset : {std::int64_t{0}, std::int64_t{world().rank() % 2}}) {
        const Tensor x = all.sliced(0, offset, offset + n);
        const std::vector<double> want = sum_in_order(world(), x);
        const Tensor nccl = x.contiguous_copy();
        reduce_from_tp(nccl, *nccl_);
        const Tensor part = x.contiguous_copy(), y = random_tensor({n}, dtype, seed(), Device::cuda);
        one_shot_->all_reduce(x);
        ASSERT_EQ(values_of(x.on(Device::cpu)), want) << n << " from " << offset;
        const std::vector<double> added = sum_of_two(y.on(Device::cpu), x.on(Device::cpu));
        one_shot_->add_all_reduced(part, y);
        ASSERT_EQ(values_of(y.on(Device::cpu)), added) << n << " from " << offset;
        EXPECT_LT(test::normalized_error(x.on(Device::cpu), nccl.on(Device::cpu)),
                  dtype == DType::f32 ? 2e-6 : 2e-2);
      }
    }
  }
}

TEST_F(OneShotRanks, ManySumsWhileSomeAreLate) {
  std::vector<Tensor> got;
  std::vector<std::vector<double>> want;
  for (int step = 0; step < 400; ++step) {
    const std::int64_t n = step % 40 == 39 ? 300000 : 64 + 997 * (step % 13);
    got.push_back(random_tensor({n}, DType::bf16, seed(), Device::cuda));
    want.push_back(sum_in_order(world(), got.back()));
  }
  for (const Tensor& x : got) {
    lag();
    one_shot_->all_reduce(x);
  }
  for (std::size_t i = 0; i < got.size(); ++i) ASSERT_EQ(values_of(got[i].on(Device::cpu)), want[i]) << i;
}

// Ranks that run what they have recorded, and one that does not.
TEST_F(OneShotRanks, RecordedOnceTheyRunAgain) {
  const Tensor in = Tensor::zeros({5, 4096}, DType::bf16, Device::cuda);
  const Tensor once = in.contiguous_copy(), twice = in.contiguous_copy();
  const auto step = [&] {
    once.copy_from(in);
    one_shot_->all_reduce(once);
    twice.copy_from(once);
    one_shot_->all_reduce(twice);
    one_shot_->all_reduce(twice);
  };
  step();
  cuda::Graph graph;
  if (world().rank() != 1) graph.record(compute(), step);
  for (int i = 0; i < 100; ++i) {
    in.copy_from(random_tensor(in.shape(), DType::bf16, seed(), Device::cuda));
    const std::vector<double> want = sum_in_order(world(), in);
    lag();
    if (graph.recorded()) {
      graph.launch(compute());
    } else {
      step();
    }
    ASSERT_EQ(values_of(once.on(Device::cpu)), want) << i;
    std::vector<float> grown(want.begin(), want.end());
    for (float& v : grown) v *= static_cast<float>(world().size() * world().size());
    ASSERT_LT(test::normalized_error(twice.on(Device::cpu), Tensor::from(grown, in.shape())), 2e-2) << i;
  }
}

TEST_F(OneShotRanks, GatherWhatNcclGathers) {
  const int size = world().size();
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const Shape& shape : {Shape{1, 128256}, Shape{3, 1003}, Shape{33, 32000}, Shape{2, 5}}) {
      const std::int64_t each = (shape[1] + size - 1) / size;
      const std::int64_t begin = std::min(shape[1], world().rank() * each);
      const Tensor mine =
          random_tensor({shape[0], std::min(each, shape[1] - begin)}, dtype, seed(), Device::cuda);
      const Tensor y = random_tensor(shape, dtype, seed(), Device::cuda);
      y.sliced(1, begin, begin + mine.dim(1)).copy_from(mine);
      const Tensor want = gather_columns(mine, shape[1], *nccl_);
      for (int i = 0; i < 5; ++i) {
        lag();
        one_shot_->gather_columns(y);
      }
      EXPECT_EQ(values_of(y.on(Device::cpu)), values_of(want.on(Device::cpu)));
    }
  }
}

TEST_F(OneShotRanks, ModelsGiveWhatOneRankGives) {
  one_shot_.reset();
  TpCase plain, tied;
  plain.dtype = tied.dtype = DType::f32;
  tied.config.tied = tied.config.qkv_bias = tied.config.output_bias = true;
  for (const TpCase& c : {plain, tied}) {
    const test::Tensors weights = test::weights_of(c);
    test::TpLayout layout{world().size(), false, 1};
    layout.one_shot = [](Communicator&) { return made(world()); };
    const auto got = test::run_rank(c, weights, layout, *nccl_, world(), Device::cuda);
    std::string where;
    EXPECT_LT(test::worst_of(got, test::run_whole(c, weights), where), 3e-5) << where;
  }
}

// Ends its GPU's work; started by the test below.
class OneShotFailures : public OneShotRanks {
 protected:
  void SetUp() override {
    if (!launched_by_mpi() || GTEST_FLAG_GET(filter).rfind("OneShotFailures.", 0) != 0)
      GTEST_SKIP() << "a rank that fails, for a test of OneShot";
    OneShotRanks::SetUp();
  }
};

TEST_F(OneShotFailures, NeverComes) {
  one_shot_ = one_shot_reduce(world(), Device::cuda, nullptr, {1 << 20, std::chrono::seconds(3)});
  const Tensor x = Tensor::zeros({4096}, DType::bf16, Device::cuda);
  one_shot_->all_reduce(x);
  cuda::synchronize(compute());
  if (world().rank() == 1) std::this_thread::sleep_for(std::chrono::seconds(80));
  try {
    one_shot_->all_reduce(x);
    cuda::synchronize(compute());
  } catch (const Error& error) {
    std::fprintf(stderr, "ridge: %s\n", error.what());
    world().abort(error.what(), 2);
  }
}

TEST(OneShot, ARankThatNeverComesIsNamed) {
  if (launched_by_mpi() || !test::on_gpu() || cuda_devices().size() < 2) GTEST_SKIP() << "needs 2 GPUs";
  const test::Outcome outcome = test::run_tests_as_ranks(2, "OneShotFailures.NeverComes");
  EXPECT_NE(outcome.exit_code, 0);
  EXPECT_NE(outcome.err.find("a sum over ranks: rank 1 did not come to it within 3 s"), std::string::npos)
      << outcome.err << outcome.out;
  EXPECT_LT(outcome.seconds, 60);
}

}  // namespace
}  // namespace ridge::parallel
