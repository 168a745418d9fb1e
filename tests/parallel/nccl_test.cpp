#include <csignal>
#include <deque>

#include "core/autograd.h"
#include "core/base/error.h"
#include "core/tensor.h"
#include "parallel/nccl_communicator.h"
#include "tests/parallel/flat_units.h"
#include "tests/parallel/group_checks.h"
#include "tests/parallel/messages.h"
#include "tests/parallel/mpirun.h"

namespace ridge::parallel {
namespace {

using test::Outcome;
using test::run_tests_as_ranks;
using test::Values;

bool gpu_wanted() {
  const char* device = std::getenv("RIDGE_TEST_DEVICE");
  return device != nullptr && std::string_view(device) == "cuda";
}

// Starts ranks, where there are GPUs for them.
class Nccl : public ::testing::Test {
 protected:
  void SetUp() override {
    if (launched_by_mpi()) GTEST_SKIP() << "this is a rank already";
    if (!gpu_wanted()) GTEST_SKIP() << "RIDGE_TEST_DEVICE is not cuda";
  }
  // At most 4.
  static int gpus() { return static_cast<int>(std::min<std::size_t>(4, cuda_devices().size())); }
};

// A rank on its own GPU.
class Rank : public ::testing::Test {
 protected:
  static Communicator& world() {
    static const bool kSelected = (cuda::select_device(test::mpi_process.session().local_rank()), true);
    static_cast<void>(kSelected);
    return test::mpi_process.session().world();
  }
  static void wait_for_gpu() { cuda::synchronize(current_stream(Device::cuda)); }
};

class NcclRanks : public Rank {
 protected:
  static void SetUpTestSuite() {
    if (launched_by_mpi() && gpu_wanted()) nccl_ = nccl_communicator(world());
  }
  static void TearDownTestSuite() { nccl_.reset(); }
  void SetUp() override {
    if (nccl_ == nullptr) GTEST_SKIP() << "started by Nccl.CollectivesOfGpus";
  }
  static Communicator& ranks() { return *nccl_; }

 private:
  static inline std::unique_ptr<Communicator> nccl_;
};

TEST(NcclStub, ABuildWithoutCudaSaysSo) {
  if (built_with_cuda()) GTEST_SKIP() << "this build has CUDA";
  EXPECT_THROW(nccl_communicator(*self_communicator()), UserError);
}

TEST_F(Nccl, OneRankIsTheIdentityOnItsGpu) {
  cuda::select_device(0);
  const auto self = self_communicator();
  test::expect_collectives(*nccl_communicator(*self), Device::cuda);
}

TEST_F(Nccl, CollectivesOfGpus) {
  if (gpus() < 2) GTEST_SKIP() << "needs 2 GPUs";
  test::expect_ranks_pass(gpus(), "NcclRanks.*");
}

TEST_F(NcclRanks, GiveEveryCollectiveInGpuMemory) { test::expect_collectives(ranks(), Device::cuda); }

TEST_F(NcclRanks, GiveEveryCollectiveInHostMemory) {
  test::expect_collectives(ranks(), Device::cpu);
  ranks().barrier();
}

TEST_F(NcclRanks, GiveMessagesInGpuMemory) { test::expect_messages(ranks(), Device::cuda); }

TEST_F(NcclRanks, GiveMessagesInHostMemory) {
  test::expect_messages(ranks(), Device::cpu);
  test::expect_sends_are_buffered(ranks(), 1 << 16);
}

TEST_F(NcclRanks, Split) {
  test::expect_splits(ranks(), Device::cuda);
  test::expect_splits(ranks(), Device::cpu);
}

TEST_F(NcclRanks, EveryCollectiveInASplit) {
  const auto most = ranks().split(ranks().rank() == 0 && ranks().size() > 2 ? -1 : 0);
  if (most) test::expect_collectives(*most, Device::cuda);
}

TEST_F(NcclRanks, HaveACommunicatorOfEachAxis) {
  const Groups::Wrap wrap = [](Communicator& host) { return nccl_communicator(host); };
  for (const Mesh& mesh : test::meshes_of(world().size())) {
    Groups groups(mesh, world(), wrap);
    test::expect_groups(groups, world(), Device::cuda);
    test::expect_groups(groups, world(), Device::cpu);
  }
}

// Each has a stream of its own: what waits in one group does not hold up another.
TEST_F(NcclRanks, AGroupDoesNotWaitForAnother) {
  const auto first = ranks().split(0), second = ranks().split(0);
  const int next = test::neighbour(ranks(), 1), before = test::neighbour(ranks(), -1);
  Values<float> mine(std::vector<float>(1 << 20, 1), Device::cuda), got(mine.read(), Device::cuda),
      sum(std::vector<float>(9, 1), Device::cuda);
  for (int round = 0; round < 2; ++round) {  // the first makes connections
    first->exchange({first->send_to(next, mine.view()), first->receive_from(before, got.span())});
    second->all_reduce(sum.span());
    wait_for_gpu();
  }
  std::unique_ptr<Pending> waiting;
  if (ranks().rank() == 0) waiting = first->exchange_async({first->receive_from(before, got.span())});
  second->all_reduce(sum.span());
  wait_for_gpu();
  if (next == 0) first->exchange({first->send_to(0, mine.view())});
  if (waiting) waiting->wait();
  wait_for_gpu();
  const auto n = static_cast<float>(ranks().size());
  EXPECT_EQ(sum.read(), std::vector<float>(9, n * n * n));
}

TEST_F(NcclRanks, MetaMovesNothing) {
  ranks().all_reduce_async(DeviceSpan<float>{nullptr, 8, Device::meta})->wait();
}

// 128 MiB that a GPU is kept busy with.
class Busy {
 public:
  explicit Busy(std::int64_t value)
      : from_(std::vector<std::int64_t>(kCount, value), Device::cuda),
        to_(std::vector<std::int64_t>(kCount), Device::cuda) {}
  // About 65 us each on an H200.
  void copy(int times) {
    for (int i = 0; i < times; ++i)
      cuda::copy(to_.span().data, from_.span().data, kCount * 8, current_stream(Device::cuda));
  }
  Values<std::int64_t>& copied() { return to_; }

 private:
  static constexpr std::size_t kCount = std::size_t{1} << 24;
  Values<std::int64_t> from_, to_;
};

bool all_are(const std::vector<std::int64_t>& values, std::int64_t value) {
  return std::all_of(values.begin(), values.end(), [&](std::int64_t v) { return v == value; });
}

TEST_F(NcclRanks, ACollectiveSeesWhatWasQueuedBeforeAndIsSeenByWhatComesAfter) {
  Busy busy(ranks().rank() + 1);
  const auto span = busy.copied().span();
  Values<std::int64_t> after(std::vector<std::int64_t>(span.count), Device::cuda);
  busy.copy(50);
  const auto pending = ranks().all_reduce_async(span);
  pending->wait();
  cuda::copy(after.span().data, span.data, static_cast<std::int64_t>(span.count * 8),
             current_stream(Device::cuda));
  busy.copy(1);  // not before the sum was copied
  const std::int64_t sum = ranks().size() * (ranks().size() + 1) / 2;
  EXPECT_TRUE(all_are(after.read(), sum));
  EXPECT_TRUE(all_are(busy.copied().read(), ranks().rank() + 1));
}

TEST_F(NcclRanks, TheHostDoesNotWait) {
  Busy busy(1);
  Values<float> warm(std::vector<float>(1), Device::cuda);
  ranks().all_reduce(warm.span());  // the first of its size makes connections, and may wait
  ranks().all_reduce(busy.copied().span());
  wait_for_gpu();
  busy.copy(600);
  ranks().all_reduce_async(busy.copied().span())->wait();
  ranks().all_reduce(warm.span());
  cuda::Event end;
  end.record(current_stream(Device::cuda));
  EXPECT_FALSE(end.done());
  wait_for_gpu();
  EXPECT_TRUE(end.done());
}

TEST_F(NcclRanks, ManyAtOnceKeepTheirOrder) {
  std::deque<Values<float>> values;
  std::vector<std::unique_ptr<Pending>> pending;
  for (std::size_t b = 0; b < 200; ++b) {
    values.emplace_back(std::vector<float>(b + 1, static_cast<float>(b)), Device::cuda);
    pending.push_back(ranks().all_reduce_async(values.back().span()));
  }
  for (auto it = pending.rbegin(); it != pending.rend(); ++it) (*it)->wait();
  for (std::size_t b = 0; b < 200; ++b) {
    EXPECT_EQ(values[b].read(),
              std::vector<float>(b + 1, static_cast<float>(b) * static_cast<float>(ranks().size())));
  }
}

TEST_F(NcclRanks, GradientsAreSummedOverShardsAndReplicas) {
  const auto self = self_communicator();
  const double sum = ranks().size() * (ranks().size() + 1) / 2.0;
  const std::vector<std::vector<test::Held>> unit{
      {{"q", {8, 8}}, {"k", {33}}, {"unused", {7}}, {"last", {1 << 20}}}};
  for (int stage = 0; stage <= 3; ++stage) {  // 0: replicas
    FsdpOptions options;
    options.stage = std::max(stage, 1);
    test::FlatUnits units(unit, stage > 0 ? ranks() : *self, stage > 0 ? *self : ranks(), options,
                          Device::cuda);
    for (int step = 1; step <= 3; ++step) {
      units.pass({"last", "k", "q"}, step * (ranks().rank() + 1), false);
      units.pass({"last", "k"}, step * (ranks().rank() + 1));
      units.expect_all("q", step * sum);
      units.expect_all("k", 2 * step * sum);
      units.expect_all("last", 2 * step * sum);
      units.expect_all("unused", 0);
      units.clear();
    }
  }
}

// Ranks that fail; each is started by the test of Nccl below it.
class NcclFailures : public Rank {
 protected:
  void SetUp() override {
    if (!launched_by_mpi() || GTEST_FLAG_GET(filter).rfind("NcclFailures.", 0) != 0)
      GTEST_SKIP() << "a rank that fails, for a test of Nccl";
    nccl_ = nccl_communicator(world(), std::chrono::seconds(3));
  }
  // Sums over all ranks, and waits for the result.
  void meet() {
    Values<float> values(std::vector<float>(1024, 1), Device::cuda);
    nccl_->all_reduce(values.span());
    wait_for_gpu();
  }
  static void never_come() { std::this_thread::sleep_for(std::chrono::seconds(80)); }

  std::unique_ptr<Communicator> nccl_;
};

void expect_failure(const Outcome& outcome, const std::string& line) {
  EXPECT_NE(outcome.exit_code, 0);
  EXPECT_NE(outcome.err.find(line), std::string::npos) << outcome.err << outcome.out;
  EXPECT_LT(outcome.seconds, 60) << outcome.err;
}

TEST_F(NcclFailures, NeverComes) {
  meet();
  if (world().rank() == 1) never_come();
  meet();
}

TEST_F(Nccl, ARankThatNeverComesEndsTheOthersWithALine) {
  if (gpus() < 2) GTEST_SKIP() << "needs 2 GPUs";
  const Outcome outcome = run_tests_as_ranks(2, "NcclFailures.NeverComes");
  expect_failure(outcome, "NCCL: all_reduce #2 of 1024 f32 is not done after 3 s");
  expect_failure(outcome, "ridge: [rank 0 of 2 on ");
}

TEST_F(NcclFailures, NeverComesAtAll) {
  if (world().rank() == 1) never_come();
  meet();
}

TEST_F(Nccl, ARankThatNeverComesToTheFirstCollective) {
  if (gpus() < 2) GTEST_SKIP() << "needs 2 GPUs";
  expect_failure(run_tests_as_ranks(2, "NcclFailures.NeverComesAtAll"),
                 "NCCL: all_reduce #1 of 1024 f32 is not done after 3 s");
}

// Each group's watchdog sees it; a process says one line.
TEST_F(NcclFailures, NeverComesToAnyOfSeveral) {
  const auto first = nccl_->split(0), second = nccl_->split(0);
  meet();
  if (world().rank() == 1) never_come();
  Values<float> values(std::vector<float>(1024, 1), Device::cuda);
  const auto a = first->all_reduce_async(values.span());
  const auto b = nccl_->all_reduce_async(values.span());
  second->all_reduce(values.span());
  wait_for_gpu();
}

TEST_F(Nccl, ARankThatNeverComesToSeveralGroupsIsNamedOnce) {
  if (gpus() < 2) GTEST_SKIP() << "needs 2 GPUs";
  const Outcome outcome = run_tests_as_ranks(2, "NcclFailures.NeverComesToAnyOfSeveral");
  expect_failure(outcome, "is not done after 3 s");
  const std::size_t line = outcome.err.find("ridge: [rank 0 of 2 on ");
  ASSERT_NE(line, std::string::npos) << outcome.err;
  EXPECT_EQ(outcome.err.find("ridge: [rank 0 of 2 on ", line + 1), std::string::npos) << outcome.err;
}

TEST_F(NcclFailures, Dies) {
  meet();
  if (world().rank() == 1) ::raise(SIGKILL);
  meet();
}

TEST_F(Nccl, ARankThatDiesEndsTheOthersWithALine) {
  if (gpus() < 2) GTEST_SKIP() << "needs 2 GPUs";
  expect_failure(run_tests_as_ranks(2, "NcclFailures.Dies"),
                 "ended from outside: another rank has failed, or the job was cancelled");
}

// As launch/main.cpp: what was thrown is reported after everything has been destroyed.
TEST_F(NcclFailures, Throws) {
  try {
    const std::unique_ptr<Communicator> nccl = std::move(nccl_);
    Values<float> values(std::vector<float>(1024, 1), Device::cuda);
    nccl->all_reduce(values.span());
    wait_for_gpu();
    if (nccl->rank() == 1) {
      nccl->all_reduce(values.span());
      fail_user("rank 1 has no batch");
    }
    never_come();
  } catch (const UserError& error) {
    std::fprintf(stderr, "ridge: %s\n", error.what());
    world().abort(error.what(), 1);
  }
}

TEST_F(Nccl, AnErrorThatUnwindsPastACollectiveIsReported) {
  if (gpus() < 2) GTEST_SKIP() << "needs 2 GPUs";
  const Outcome outcome = run_tests_as_ranks(2, "NcclFailures.Throws");
  expect_failure(outcome, "ridge: rank 1 has no batch");
  EXPECT_EQ(outcome.exit_code, 1);
}

}  // namespace
}  // namespace ridge::parallel
