// Copies between the GPUs of one host, where there are some: what they carry, and what they cost beside a
// product.
#include "parallel/peer_memory.h"

#include <cmath>
#include <random>

#include "core/tensor.h"
#include "kernels/fill.h"
#include "kernels/matmul.h"
#include "parallel/nccl_communicator.h"
#include "parallel/peer_gather.h"
#include "parallel/peer_reduce.h"
#include "parallel/tensor_span.h"
#include "tests/parallel/flat_units.h"
#include "tests/parallel/mpirun.h"
#include "tests/test_device.h"

namespace ridge::parallel {
namespace {

Stream& compute() { return current_stream(Device::cuda); }

void start_ranks(const std::string& filter) {
  if (launched_by_mpi()) GTEST_SKIP() << "this is a rank already";
  if (!test::on_gpu()) GTEST_SKIP() << "RIDGE_TEST_DEVICE is not cuda";
  const auto gpus = static_cast<int>(cuda_devices().size());
  if (gpus < 2) GTEST_SKIP() << "needs 2 GPUs";
  test::expect_ranks_pass(gpus >= 4 ? 4 : 2, filter);
}

TEST(Peers, CopiesOfGpus) { start_ranks("PeerRanks.*"); }

class PeerRanks : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    if (!launched_by_mpi() || !test::on_gpu()) return;
    cuda::select_device(test::mpi_process.session().local_rank());
  }
  void SetUp() override {
    if (!launched_by_mpi() || !test::on_gpu()) GTEST_SKIP() << "started by Peers.CopiesOfGpus";
    std::string why;
    peers_ = peer_group(world(), &why, std::chrono::seconds(20));
    ASSERT_NE(peers_, nullptr) << why;
    engine_.seed(static_cast<std::uint64_t>(world().rank()) + 1);
  }
  static Communicator& world() { return test::mpi_process.session().world(); }
  static int rank() { return world().rank(); }
  static int size() { return world().size(); }

  // The host or the GPU of a rank is late now and then.
  void lag() {
    if (engine_() % 7 == 0) std::this_thread::sleep_for(std::chrono::microseconds(engine_() % 3000));
    if (engine_() % 7 == 0) busy(1 + static_cast<int>(engine_() % 20));
  }
  // About 65 us each on an H200.
  void busy(int times) {
    if (!work_.defined()) work_ = Tensor::zeros({2, std::int64_t{32} << 20}, DType::f32, Device::cuda);
    for (int i = 0; i < times; ++i) work_.sliced(0, 0, 1).copy_from(work_.sliced(0, 1, 2));
  }
  static void fill(const Tensor& t, double value) { kernels::fill<float>(compute(), t.view<float>(), value); }

  std::unique_ptr<PeerGroup> peers_;
  std::mt19937_64 engine_;
  Tensor work_;
};

std::vector<float> host_of(const Tensor& t) {
  std::vector<float> values(static_cast<std::size_t>(t.numel()));
  cuda::copy(values.data(), t.data(), t.bytes(), compute());
  cuda::synchronize(compute());
  return values;
}

float value_of(int rank, int version) { return static_cast<float>(rank * 1000 + version); }

/// Keeps some elements of each gather on the GPU, so that no host waits between two.
class Kept {
 public:
  Kept(int gathers, int ranks, std::int64_t shard)
      : ranks_(ranks),
        shard_(shard),
        kept_(Tensor::zeros({gathers * ranks, kEach}, DType::f32, Device::cuda)) {}
  // The first, last and middle elements of every shard of `whole`.
  void keep(const Tensor& whole, int version) {
    for (int r = 0; r < ranks_; ++r) {
      const std::int64_t row = static_cast<std::int64_t>(versions_.size()) * ranks_ + r, first = r * shard_;
      copy(whole, first, row, 0);
      copy(whole, first + shard_ / 2, row, 1);
      copy(whole, first + shard_ - 1, row, 2);
    }
    versions_.push_back(version);
  }
  void expect_versions() const {
    const std::vector<float> values = host_of(kept_);
    for (std::size_t g = 0; g < versions_.size(); ++g) {
      for (int r = 0; r < ranks_; ++r) {
        for (std::size_t k = 0; k < kEach; ++k)
          ASSERT_EQ(values[(g * static_cast<std::size_t>(ranks_) + static_cast<std::size_t>(r)) * kEach + k],
                    value_of(r, versions_[g]))
              << "gather " << g << " of rank " << r;
      }
    }
  }

 private:
  static constexpr std::int64_t kEach = 3;
  void copy(const Tensor& whole, std::int64_t from, std::int64_t row, std::int64_t k) {
    cuda::copy(kept_.view<float>().data + row * kEach + k, whole.view<float>().data + from, 4, compute());
  }

  int ranks_;
  std::int64_t shard_;
  Tensor kept_;  // [gathers * ranks, 3]
  std::vector<int> versions_;
};

// Small regions share an allocation with others: they begin somewhere within it.
TEST_F(PeerRanks, SeeEachOthersMemory) {
  std::vector<Tensor> mine;
  for (const std::int64_t n : {16, 1000, 300000, 5000000})
    mine.push_back(Tensor::full({n}, rank() + static_cast<double>(n), DType::f32, Device::cuda));
  cuda::synchronize(compute());
  for (const Tensor& t : mine) {
    const auto buffer = peers_->share(t.data(), t.bytes());
    ASSERT_TRUE(buffer) << peers_->trouble();
    world().barrier();
    for (int r = 0; r < size(); ++r) {
      const Tensor got = Tensor::zeros(t.shape(), DType::f32, Device::cuda);
      cuda::copy(got.data(), buffer->of[static_cast<std::size_t>(r)], t.bytes(), compute());
      EXPECT_EQ(host_of(got), std::vector<float>(static_cast<std::size_t>(t.numel()),
                                                 static_cast<float>(r + static_cast<double>(t.numel()))))
          << t.numel() << " of rank " << r;
    }
    world().barrier();
  }
  peers_.reset();  // before the memory
}

TEST_F(PeerRanks, GatherOneVersionOfEveryShard) {
  for (const std::int64_t shard : {1001, 3 << 20}) {
    const int versions = shard > 100000 ? 60 : 300;
    const Tensor mine = Tensor::zeros({shard}, DType::f32, Device::cuda);
    const Tensor whole = Tensor::zeros({shard * size()}, DType::f32, Device::cuda);
    const auto source = peers_->share(mine.data(), mine.bytes());
    ASSERT_TRUE(source) << peers_->trouble();
    Kept kept(versions * 3, size(), shard);
    PeerGather gather(*peers_);
    for (int version = 1; version <= versions; ++version) {
      gather.before_change();
      fill(mine.sliced(0, 0, shard / 2), value_of(rank(), version));
      lag();
      fill(mine.sliced(0, shard / 2, shard), value_of(rank(), version));
      gather.sources_changed();
      for (int n = static_cast<int>(engine_() % 4); n > 0; --n) {  // each rank as often as it likes
        fill(whole, -1);
        const auto pending = gather.start(*source, whole.data());
        lag();
        pending->wait();
        kept.keep(whole, version);
      }
    }
    kept.expect_versions();
    SetUp();  // a new group: the old one ends before the memory does
  }
}

TEST_F(PeerRanks, ShardsOfAWholeThatAllKeep) {
  const std::int64_t shard = 70001;
  const Tensor whole = Tensor::zeros({shard * size()}, DType::f32, Device::cuda);
  const Tensor mine = whole.sliced(0, rank() * shard, (rank() + 1) * shard);
  const auto source = peers_->share(mine.data(), mine.bytes());
  ASSERT_TRUE(source) << peers_->trouble();
  Kept kept(200, size(), shard);
  PeerGather gather(*peers_);
  for (int version = 1; version <= 200; ++version) {
    gather.before_change();
    fill(mine, value_of(rank(), version));
    gather.start(*source, whole.data())->wait();
    lag();
    kept.keep(whole, version);
  }
  kept.expect_versions();
  peers_.reset();
}

TEST_F(PeerRanks, WaitForOneThatIsLate) {
  const std::int64_t shard = 5000;
  const Tensor mine = Tensor::zeros({shard}, DType::f32, Device::cuda);
  const Tensor whole = Tensor::zeros({shard * size()}, DType::f32, Device::cuda);
  const auto source = peers_->share(mine.data(), mine.bytes());
  ASSERT_TRUE(source) << peers_->trouble();
  Kept kept(size() + 1, size(), shard);
  PeerGather gather(*peers_);
  for (int version = 1; version <= size(); ++version) {
    gather.before_change();
    if (rank() + 1 == version) std::this_thread::sleep_for(std::chrono::milliseconds(700));
    fill(mine, value_of(rank(), version));
    gather.start(*source, whole.data())->wait();
    kept.keep(whole, version);
  }
  kept.expect_versions();
  peers_.reset();
}

/// This rank's shard of the sum of what all ranks have in `staging`, in their order.
template <class T>
std::vector<float> reference_sum(Communicator& host, const Tensor& staging) {
  const auto mine = host_of(staging.to(DType::f32));
  std::vector<float> all(mine.size() * static_cast<std::size_t>(host.size()));
  host.all_gather(std::span<const float>(mine), std::span<float>(all));
  const std::size_t shard = mine.size() / static_cast<std::size_t>(host.size());
  std::vector<float> sum(shard);
  for (std::size_t i = 0; i < shard; ++i) {
    const std::size_t at = static_cast<std::size_t>(host.rank()) * shard + i;
    sum[i] = all[at];
    for (std::size_t r = 1; r < static_cast<std::size_t>(host.size()); ++r)
      sum[i] += all[r * mine.size() + at];
  }
  return sum;
}

template <class T>
void expect_sums(Communicator& host, PeerGroup& peers, std::int64_t shard) {
  const Tensor staging = Tensor::zeros({shard * host.size()}, dtype_of<T>, Device::cuda);
  const Tensor landing = Tensor::zeros({shard * (host.size() - 1)}, dtype_of<T>, Device::cuda);
  const Tensor y = Tensor::zeros({shard}, DType::f32, Device::cuda);
  PeerReduceScatter reduce(peers);
  const auto buffer = reduce.share(staging.data(), staging.bytes());
  ASSERT_NE(buffer, nullptr) << peers.trouble();
  for (std::uint64_t step = 0; step < 6; ++step) {
    reduce.before_write(*buffer);
    kernels::normal<T>(compute(), staging.view<T>(), 0, 1, {step, static_cast<std::uint64_t>(host.rank())});
    const std::vector<float> before = host_of(y), want = reference_sum<T>(host, staging);
    reduce.start(*buffer, landing.data())->wait();
    const bool adds = step % 2 == 1;
    reduce.sum<T>(compute(), *buffer, landing.data(), y.view<float>(), adds);
    const std::vector<float> got = host_of(y);
    for (std::size_t i = 0; i < got.size(); ++i)
      ASSERT_EQ(got[i], adds ? before[i] + want[i] : want[i]) << "step " << step << ", element " << i;
  }
  cuda::synchronize(compute());
  host.barrier();  // nobody pulls from what ends here
}

TEST_F(PeerRanks, SumInTheOrderOfRanks) {
  expect_sums<float>(world(), *peers_, 1003);
  SetUp();
  expect_sums<bf16>(world(), *peers_, 1003);
  SetUp();
  expect_sums<float>(world(), *peers_, 1 << 20);
}

// No host waits, and ranks are late: buffers are used again and again.
TEST_F(PeerRanks, SumsDoNotMixUpUses) {
  const std::int64_t shard = 200000;
  const int steps = 150;
  std::vector<Tensor> staging;
  std::vector<std::unique_ptr<PeerReduceScatter::Staging>> buffers;
  const Tensor landing = Tensor::zeros({shard * (size() - 1)}, DType::f32, Device::cuda);
  const Tensor y = Tensor::zeros({shard}, DType::f32, Device::cuda);
  const Tensor kept = Tensor::zeros({steps, 2}, DType::f32, Device::cuda);
  PeerReduceScatter reduce(*peers_);
  for (int b = 0; b < 2; ++b) {
    staging.push_back(Tensor::zeros({shard * size()}, DType::f32, Device::cuda));
    buffers.push_back(reduce.share(staging.back().data(), staging.back().bytes()));
    ASSERT_NE(buffers.back(), nullptr) << peers_->trouble();
  }
  for (int step = 0; step < steps; ++step) {
    const std::size_t b = step % 5 == 0 ? 0 : static_cast<std::size_t>(step % 2);
    reduce.before_write(*buffers[b]);
    lag();
    fill(staging[b], value_of(rank(), step));
    const auto pending = reduce.start(*buffers[b], landing.data());
    lag();
    pending->wait();
    reduce.sum<float>(compute(), *buffers[b], landing.data(), y.view<float>(), false);
    cuda::copy(kept.view<float>().data + step * 2, y.view<float>().data, 4, compute());
    cuda::copy(kept.view<float>().data + step * 2 + 1, y.view<float>().data + shard - 1, 4, compute());
  }
  const std::vector<float> got = host_of(kept);
  for (int step = 0; step < steps; ++step) {
    float want = 0;
    for (int r = 0; r < size(); ++r) want += value_of(r, step);
    ASSERT_EQ(got[static_cast<std::size_t>(step) * 2], want) << step;
    ASSERT_EQ(got[static_cast<std::size_t>(step) * 2 + 1], want) << step;
  }
  peers_.reset();
}

// All of what Fsdp asks of peers; units of one size take turns with buffers.
TEST_F(PeerRanks, CarryParametersAndGradientsOfUnits) {
  const auto self = self_communicator();
  const auto nccl = nccl_communicator(world());
  const double sum = size() * (size() + 1) / 2.0;
  const std::vector<std::vector<test::Held>> unit{
      {{"q", {8, 8}}, {"k", {33}}, {"unused", {7}}, {"last", {1 << 20}}}};
  for (int stage = 1; stage <= 3; ++stage) {
    for (const DType reduce : {DType::f32, DType::bf16}) {
      FsdpOptions options;
      options.stage = stage;
      options.reduce = reduce;
      test::FlatUnits units(unit, *nccl, *self, options, Device::cuda,
                            peer_group(*nccl, nullptr, std::chrono::seconds(20)));
      for (int step = 1; step <= 4; ++step) {
        lag();
        units.pass({"last", "k", "q"}, step * (rank() + 1), false);
        lag();
        units.pass({"last", "k"}, step * (rank() + 1));
        units.expect_all("q", step * sum);
        units.expect_all("k", 2 * step * sum);
        units.expect_all("last", 2 * step * sum);
        units.expect_all("unused", 0);
        units.clear();
        for (const OwnedPiece* piece : units.fsdp().pieces()) fill(piece->value, value_of(3, step));
        units.fsdp().publish();
        units.fsdp().enter(0, Tensor::zeros({2}, DType::f32));
        for (const char* name : {"q", "last"}) {
          for (const double x : test::values_of(units.value(name).detached().on(Device::cpu)))
            ASSERT_EQ(x, value_of(3, step)) << name;
        }
      }
    }
  }
}

// Run by hand, on machines that nobody else uses:
//   RIDGE_TEST_DEVICE=cuda mpirun -np 4 test_parallel --gtest_also_run_disabled_tests
//   --gtest_filter='PeerTimes.*'
class PeerTimes : public PeerRanks {
 protected:
  static constexpr int kProducts = 6;

  void SetUp() override {
    PeerRanks::SetUp();
    if (peers_ == nullptr) return;
    nccl_ = nccl_communicator(world());
    for (Tensor* t : {&a_, &b_, &c_}) *t = Tensor::empty({8192, 8192}, DType::bf16, Device::cuda);
    for (const Tensor& t : {a_, b_}) kernels::normal<bf16>(compute(), t.view<bf16>(), 0, 1, {1, 2});
  }
  void multiply() {
    for (int i = 0; i < kProducts; ++i)
      kernels::matmul<bf16>(compute(), a_.view<bf16>(), b_.view<bf16>(), c_.view<bf16>());
  }
  // Milliseconds of what `run` queues on the compute stream; the median of 7 after 2 that are not counted.
  template <class Run>
  double milliseconds(const Run& run) {
    std::vector<double> times;
    for (int i = 0; i < 9; ++i) {
      cuda::synchronize(compute());
      world().barrier();
      cuda::Event begin(true), end(true);
      begin.record(compute());
      run(end);
      cuda::synchronize(compute());
      if (i >= 2) times.push_back(end.nanoseconds_since(begin) * 1e-6);
    }
    std::nth_element(times.begin(), times.begin() + 3, times.end());
    return times[3];
  }
  // `start` gives what runs beside the products; `bytes` come in over links.
  template <class Start>
  void report(const char* name, double bytes, const Start& start) {
    const double moved = milliseconds([&](cuda::Event& end) {
      start()->wait();
      end.record(compute());
    });
    const double alone = milliseconds([&](cuda::Event& end) {
      multiply();
      end.record(compute());
    });
    const auto products = [&](bool all) {
      return milliseconds([&](cuda::Event& end) {
        const auto pending = start();
        multiply();
        if (!all) end.record(compute());
        pending->wait();
        if (all) end.record(compute());
      });
    };
    const double beside = products(false), both = products(true);
    if (rank() == 0)
      fmt::print(
          "{:<22} {:7.1f} MiB in: {:7.3f} ms alone ({:5.1f} GB/s in); {} products {:.3f} ms alone, {:.3f} "
          "beside "
          "(+{:.3f}), {:.3f} until both are done\n",
          name, bytes / 1048576.0, moved, bytes / moved * 1e-6, kProducts, alone, beside, beside - alone,
          both);
    std::fflush(stdout);
  }

  std::unique_ptr<Communicator> nccl_;
  Tensor a_, b_, c_;  // [8192, 8192]
};

TEST_F(PeerTimes, DISABLED_OfGathers) {
  for (const std::int64_t mebibytes : {64, 109, 256, 1024}) {
    const std::int64_t shard = mebibytes << 19;  // elements
    const Tensor mine = Tensor::zeros({shard}, DType::bf16, Device::cuda);
    const Tensor whole = Tensor::zeros({shard * size()}, DType::bf16, Device::cuda);
    const auto source = peers_->share(mine.data(), mine.bytes());
    ASSERT_TRUE(source) << peers_->trouble();
    const double bytes = static_cast<double>(mine.bytes()) * (size() - 1);
    {
      PeerGather gather(*peers_);
      report("gather, copy engines", bytes, [&] { return gather.start(*source, whole.data()); });
    }
    report("gather, NCCL", bytes, [&] {
      const DeviceSpan<bf16> from = span_of<bf16>(mine);
      return nccl_->all_gather_async(DeviceSpan<const bf16>{from.data, from.count, from.device},
                                     span_of<bf16>(whole));
    });
    SetUp();
  }
}

TEST_F(PeerTimes, DISABLED_OfSums) {
  for (const std::int64_t mebibytes : {64, 218, 512}) {
    const std::int64_t shard = mebibytes << 18;
    const Tensor staging = Tensor::zeros({shard * size()}, DType::f32, Device::cuda);
    const Tensor landing = Tensor::zeros({shard * (size() - 1)}, DType::f32, Device::cuda);
    const Tensor y = Tensor::zeros({shard}, DType::f32, Device::cuda);
    const double bytes = static_cast<double>(landing.bytes());
    {
      PeerReduceScatter reduce(*peers_);
      const auto buffer = reduce.share(staging.data(), staging.bytes());
      ASSERT_NE(buffer, nullptr) << peers_->trouble();
      report("sum, copy engines", bytes, [&] {
        reduce.before_write(*buffer);
        return reduce.start(*buffer, landing.data());
      });
      const double sum = milliseconds([&](cuda::Event& end) {
        reduce.sum<float>(compute(), *buffer, landing.data(), y.view<float>(), false);
        end.record(compute());
      });
      if (rank() == 0) fmt::print("  and the sum of the parts {:.3f} ms\n", sum);
    }
    report("sum, NCCL", bytes, [&] {
      const DeviceSpan<float> from = span_of<float>(staging);
      return nccl_->reduce_scatter_async(DeviceSpan<const float>{from.data, from.count, from.device},
                                         span_of<float>(y));
    });
    SetUp();
  }
}

}  // namespace
}  // namespace ridge::parallel
