// Sharded training against one rank: every gradient, over degrees, stages and what may be combined with them.
#include <gtest/gtest.h>

#include "tests/parallel/late_communicator.h"
#include "tests/parallel/training_run.h"

namespace ridge::parallel {
namespace {

using test::Layout;
using test::Trained;
using test::TrainingRun;

constexpr auto kBlocks = models::Recompute::blocks;

// A tiny run with a global batch of `batch`; its text is repeated where it is too short.
TrainingRun run_of(const std::string& name, std::int64_t batch, std::int64_t steps) {
  TrainingRun run = test::training_run(name);
  run.batch = run.micro_batch = batch;
  run.steps = steps;
  const auto need = static_cast<std::size_t>(batch * steps * run.length + 1);
  const std::vector<std::int32_t> once = run.stream;
  while (run.stream.size() < need) run.stream.insert(run.stream.end(), once.begin(), once.end());
  return run;
}

class CpuRanks : public ::testing::Test {
 protected:
  void SetUp() override {
    if (test::on_gpu()) GTEST_SKIP() << test::kRanksAreOnTheCpu;
  }
};

struct Case {
  std::string run;
  std::int64_t accumulate = 1;
  Layout layout;
};

std::string name_of(const Case& c) {
  const FsdpOptions& o = c.layout.fsdp;
  return fmt::format("{}_{}_stage_{}_shard_{}_replicate_{}_accumulate_{}{}{}{}", c.run,
                     ridge::name_of(c.layout.dtype), o.stage, c.layout.shard, c.layout.replicate,
                     c.accumulate, o.keep_gathered ? "_kept" : "", o.no_sync ? "_no_sync" : "",
                     c.layout.recompute == kBlocks ? "_recompute" : "");
}

// Every stage and degree; what else there is goes around.
std::vector<Case> cases() {
  std::vector<Case> all;
  const char* const runs[] = {"llama3", "qwen2", "llama3_all_linear"};
  for (int stage = 1; stage <= 3; ++stage) {
    for (int shard = 1; shard <= 8; ++shard) {
      for (int replicate = 1; replicate <= 2; ++replicate) {
        const int n = shard + 3 * stage + 5 * replicate;
        Case c{runs[n % 3], n / 2 % 3 + 1, {shard, 1, replicate}};
        c.layout.fsdp.stage = stage;
        c.layout.fsdp.keep_gathered = stage == 3 && n % 2 == 0;
        c.layout.fsdp.no_sync = stage >= 2 && n / 2 % 2 == 0;
        c.layout.recompute = n % 5 == 0 ? kBlocks : models::Recompute::none;
        c.layout.dtype = n % 4 == 0 ? DType::f32 : DType::f64;
        all.push_back(c);
      }
    }
  }
  return all;
}

class Shards : public ::testing::TestWithParam<Case> {};

TEST_P(Shards, GiveTheLossesAndEveryGradientOfOneRank) {
  if (test::on_gpu()) GTEST_SKIP() << test::kRanksAreOnTheCpu;
  const Case& c = GetParam();
  const bool exact = c.layout.dtype == DType::f64;
  const TrainingRun run = run_of(c.run, c.layout.ranks() * c.accumulate, exact ? 1 : 3);
  Layout alone;
  alone.micro_batch = 1;
  alone.dtype = c.layout.dtype;
  const Trained one = test::train(run, alone, run.steps)[0];
  // Adapters are f32 in a model of f64.
  const double tolerance = exact && c.run != "llama3_all_linear" ? 1e-12 : 1e-5;
  Layout late = c.layout;
  late.wrap = [](Communicator& host) { return std::make_unique<test::LateCommunicator>(host); };
  for (const Layout& layout : {c.layout, late}) {
    const std::vector<Trained> all = test::train(run, layout, run.steps);
    for (const Trained& rank : all) {
      EXPECT_LE(test::relative_difference(rank.losses, one.losses), exact ? 1e-12 : 1e-6);
      EXPECT_LE(test::relative_difference(rank.grad_norms, one.grad_norms), tolerance);
      EXPECT_EQ(rank.first_grads.size(), run.first_grads.size());
      EXPECT_LE(test::worst_error(rank.first_grads, one.first_grads, test::norm_error), tolerance);
      EXPECT_LE(test::worst_error(rank.weights, one.weights, test::norm_error), 1e-4);
      EXPECT_TRUE(test::all_same_bits(rank.weights, all[0].weights));  // replicas stay replicas
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, Shards, ::testing::ValuesIn(cases()),
                         [](const auto& test) { return name_of(test.param); });

class Fsdps : public CpuRanks {};

// Shards of stage 1, 2 and 3 do the same sums.
TEST_F(Fsdps, StagesDoNotDifferInABit) {
  const TrainingRun run = run_of("qwen2", 12, 3);
  Layout layout{3, 1, 2};
  layout.fsdp.stage = 1;
  const Trained first = test::train(run, layout, run.steps)[0];
  for (const auto& [stage, kept] : {std::pair(2, false), {3, false}, {3, true}}) {
    layout.fsdp.stage = stage;
    layout.fsdp.no_sync = true;
    layout.fsdp.keep_gathered = kept;
    const Trained got = test::train(run, layout, run.steps)[0];
    EXPECT_EQ(got.losses, first.losses);
    EXPECT_EQ(got.grad_norms, first.grad_norms);
    EXPECT_TRUE(test::all_same_bits(got.weights, first.weights));
  }
}

TEST_F(Fsdps, SumsInBf16AreLooser) {
  const TrainingRun run = run_of("llama3", 12, 4);
  const Trained one = test::train(run, Layout{1, 3}, run.steps)[0];
  for (const int stage : {1, 2, 3}) {
    Layout layout{4, 1};
    layout.fsdp.stage = stage;
    layout.fsdp.reduce = DType::bf16;
    const Trained got = test::train(run, layout, run.steps)[0];
    EXPECT_LE(test::relative_difference(got.losses, one.losses), 1e-3);
    const double error = test::worst_error(got.first_grads, one.first_grads, test::norm_error);
    EXPECT_LE(error, 1e-2);
    EXPECT_GE(error, 1e-4);  // it does round
  }
}

TEST_F(Fsdps, DropoutsMasksDoNotDependOnTheLayout) {
  const TrainingRun run = run_of("llama3", 12, 4);
  Layout layout{1, 1};
  layout.dropout = 0.3;
  const Trained one = test::train(run, layout, run.steps)[0];
  Layout plain = layout;
  plain.dropout = 1e-30;
  const Trained whole = test::train(run, plain, 1)[0];
  EXPECT_GT(test::worst_error(whole.first_grads, one.first_grads, test::norm_error), 0.1);  // it does drop
  for (const auto& [shard, replicate, micro, blocks] :
       {std::tuple(4, 1, 1, false), {1, 2, 6, false}, {3, 1, 2, true}, {2, 3, 2, true}}) {
    layout.shard = shard;
    layout.replicate = replicate;
    layout.micro_batch = micro;
    layout.recompute = blocks ? kBlocks : models::Recompute::none;
    const Trained got = test::train(run, layout, run.steps).back();
    EXPECT_LE(test::relative_difference(got.losses, one.losses), 1e-6) << shard;
    EXPECT_LE(test::worst_error(got.first_grads, one.first_grads, test::norm_error), 1e-5) << shard;
  }
}

// A rank's own rows decide nothing about what it sends when.
TEST_F(Fsdps, CollectivesComeInOneOrderOnAllRanks) {
  for (const char* name : {"llama3", "llama3_all_linear"}) {
    for (const int stage : {1, 2, 3}) {
      const TrainingRun run = run_of(name, 12, 2);
      std::vector<test::Log> logs(6);
      Layout layout{3, 1, 2};
      layout.fsdp.stage = stage;
      layout.wrap = [&](Communicator& host) {
        return std::make_unique<test::LateCommunicator>(host, &logs[static_cast<std::size_t>(host.rank())]);
      };
      test::train(run, layout, run.steps);
      EXPECT_FALSE(logs[0].empty());
      for (const test::Log& log : logs) EXPECT_EQ(log, logs[0]);
    }
  }
}

std::int64_t started(const Layout& layout, const TrainingRun& run, char what) {
  test::Log log;
  Layout watched = layout;
  watched.wrap = [&](Communicator& host) {
    return std::make_unique<test::LateCommunicator>(host, host.rank() == 0 ? &log : nullptr);
  };
  test::train(run, watched, 1);
  return std::count_if(log.begin(), log.end(), [&](const auto& entry) { return entry.first == what; });
}

// Units: embedding, blocks, norm with head (of an untied model). One flat buffer each.
TEST_F(Fsdps, GradientsAreSummedOnceAStepWithNoSyncAndParametersGatheredOnceWhereKept) {
  const TrainingRun run = run_of("llama3", 12, 1);  // 6 micro-batches a rank
  const auto model = test::load(run.model);
  const std::int64_t blocks = model->config().layers, units = blocks + 2;
  ASSERT_FALSE(model->config().tied);
  Layout layout{2, 1};
  EXPECT_EQ(started(layout, run, 's'), 6 * units);
  layout.fsdp.no_sync = true;
  EXPECT_EQ(started(layout, run, 's'), units);
  // The last two units stay from forward to backward; the final weights are gathered by the test's own sums.
  EXPECT_EQ(started(layout, run, 'g'), 6 * (2 * units - 2));
  layout.fsdp.keep_gathered = true;
  EXPECT_EQ(started(layout, run, 'g'), 6 * units);
  layout.fsdp.stage = 2;
  EXPECT_EQ(started(layout, run, 's'), units);
  EXPECT_EQ(started(layout, run, 'g'), units);  // what the optimizer has moved
}

}  // namespace
}  // namespace ridge::parallel
