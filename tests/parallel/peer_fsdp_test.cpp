// Sharded training whose parameters and gradients go from peer to peer, against the communicator's.
#include <gtest/gtest.h>

#include <algorithm>

#include "tests/parallel/late_communicator.h"
#include "tests/parallel/thread_peers.h"
#include "tests/parallel/training_run.h"

namespace ridge::parallel {
namespace {

using test::Layout;
using test::Trained;
using test::TrainingRun;

TrainingRun run_of(const std::string& name, std::int64_t batch, std::int64_t steps) {
  TrainingRun run = test::training_run(name);
  run.batch = run.micro_batch = batch;
  run.steps = steps;
  const auto need = static_cast<std::size_t>(batch * steps * run.length + 1);
  const std::vector<std::int32_t> once = run.stream;
  while (run.stream.size() < need) run.stream.insert(run.stream.end(), once.begin(), once.end());
  return run;
}

std::unique_ptr<PeerGroup> peers_of(Communicator& shard) { return std::make_unique<test::HerePeers>(shard); }

struct Case {
  const char* run;
  int stage;
  int shard;
  int replicate;
  bool no_sync;
  DType reduce;
  DType dtype;
};

class PeerFsdp : public ::testing::TestWithParam<Case> {};

TEST_P(PeerFsdp, GivesWhatTheCommunicatorGives) {
  if (test::on_gpu()) GTEST_SKIP() << test::kRanksAreOnTheCpu;
  const Case& c = GetParam();
  const TrainingRun run = run_of(c.run, 12, c.dtype == DType::f64 ? 1 : 4);
  Layout layout{c.shard, 1, c.replicate};
  layout.fsdp.stage = c.stage;
  layout.fsdp.no_sync = c.no_sync;
  layout.fsdp.reduce = c.reduce;
  layout.dtype = c.dtype;
  const std::vector<Trained> want = test::train(run, layout, run.steps);
  test::Log log;
  layout.peers = peers_of;
  layout.wrap = [&](Communicator& host) {
    return std::make_unique<test::LateCommunicator>(host, host.rank() == 0 ? &log : nullptr);
  };
  const std::vector<Trained> got = test::train(run, layout, run.steps);
  // bf16 parts are added up in f32 here.
  const double tolerance = c.reduce == DType::bf16 ? 2e-2 : 1e-6;
  for (std::size_t r = 0; r < got.size(); ++r) {
    EXPECT_LE(test::relative_difference(got[r].losses, want[r].losses), tolerance);
    EXPECT_LE(test::relative_difference(got[r].grad_norms, want[r].grad_norms), tolerance);
    EXPECT_LE(test::worst_error(got[r].first_grads, want[r].first_grads, test::norm_error), tolerance);
    EXPECT_TRUE(test::all_same_bits(got[r].weights, got[0].weights));
  }
  const auto count = [&](char what) {
    return std::count_if(log.begin(), log.end(), [&](const auto& entry) { return entry.first == what; });
  };
  EXPECT_EQ(count('g'), 0);
  const bool pulls = c.dtype == DType::f32 && (c.stage > 1 || c.reduce == DType::bf16);
  EXPECT_EQ(count('s') == 0, pulls);
}

INSTANTIATE_TEST_SUITE_P(All, PeerFsdp,
                         ::testing::Values(Case{"llama3", 3, 4, 1, false, DType::f32, DType::f32},
                                           Case{"llama3", 3, 3, 2, true, DType::f32, DType::f32},
                                           Case{"qwen2", 2, 3, 1, false, DType::f32, DType::f32},
                                           Case{"qwen2", 2, 2, 2, true, DType::bf16, DType::f32},
                                           Case{"qwen2", 1, 3, 1, false, DType::f32, DType::f32},
                                           Case{"llama3", 1, 2, 1, false, DType::bf16, DType::f32},
                                           Case{"llama3", 3, 4, 1, false, DType::bf16, DType::f32},
                                           Case{"llama3_all_linear", 3, 3, 1, false, DType::f32, DType::f32},
                                           Case{"llama3", 3, 4, 1, false, DType::f32, DType::f64}),
                         [](const auto& info) {
                           const Case& c = info.param;
                           return fmt::format("{}_stage_{}_shard_{}_replicate_{}{}_sums_{}_{}", c.run,
                                              c.stage, c.shard, c.replicate, c.no_sync ? "_no_sync" : "",
                                              ridge::name_of(c.reduce), ridge::name_of(c.dtype));
                         });

}  // namespace
}  // namespace ridge::parallel
