// Whole runs on any layout: evaluation, `ridge train` under mpirun, and layouts that cannot be.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "launch/run_config.h"
#include "launch/run_config.pb.h"
#include "launch/trainer.h"
#include "launch/training_setup.h"
#include "tests/core/models/reference.h"
#include "tests/launch/train_helpers.h"

namespace ridge {
namespace {

using namespace test;

class LayoutRun : public ::testing::Test {
 protected:
  static Arguments joined(Arguments a, const Arguments& b) {
    a.insert(a.end(), b.begin(), b.end());
    return a;
  }
  Outcome run(const std::string& output, const Arguments& overrides, int ranks) const {
    return run_ridge(joined({"train", tiny_.config, "output=" + (folder_ / output)}, overrides),
                     {.ranks = ranks});
  }
  std::vector<double> losses(const std::string& output) const {
    std::vector<double> all;
    for (const std::string& line : lines_of(read_text(folder_ / (output + "/metrics.jsonl"))))
      all.push_back(nlohmann::json::parse(line).at("loss").get<double>());
    return all;
  }
  void expect_same_files(const std::string& found, const std::string& wanted) const {
    const SafetensorsFile got = SafetensorsFile::open(folder_ / found);
    const SafetensorsFile want = SafetensorsFile::open(folder_ / wanted);
    ASSERT_EQ(got.entries().size(), want.entries().size());
    for (const TensorEntry& entry : want.entries()) {
      ASSERT_NE(got.find(entry.name), nullptr) << entry.name;
      const auto a = floats_of(*got.find(entry.name)), b = floats_of(entry);
      ASSERT_EQ(a.size(), b.size()) << entry.name;
      double worst = 0;
      for (std::size_t i = 0; i < a.size(); ++i) worst = std::max<double>(worst, std::abs(a[i] - b[i]));
      EXPECT_LE(worst, 1e-5) << entry.name;
    }
  }
  void expect_losses(const std::string& found, const std::string& wanted) const {
    const auto got = losses(found), want = losses(wanted);
    ASSERT_EQ(got.size(), want.size());
    ASSERT_FALSE(want.empty());
    for (std::size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], want[i], 1e-5 * want[i]) << i;
  }

  TemporaryFolder folder_;
  TinyModel tiny_{folder_};
};

// Few steps with a large eps: Adam's first steps are signs of gradients, of which some are all rounding.
const Arguments kSteps{"train.steps=5", "train.global_batch=8", "train.micro_batch=2", "optim.eps=1e-4"};

TEST_F(LayoutRun, TrainUnderMpirunGivesOneRanksLossesAndModel) {
  ASSERT_EQ(run("one", kSteps, 0).exit_code, 0);
  const struct {
    int ranks;
    Arguments layout;
  } layouts[] = {
      {2, {"parallel.tp=2", "parallel.sequence_parallel=true"}},
      {2, {"parallel.pp=2", "parallel.schedule=zb-h1"}},
      {2, {"parallel.cp=2"}},
      {4, {"parallel.pp=2", "parallel.tp=2"}},
      {4, {"parallel.cp=2", "parallel.context=ulysses", "parallel.shard=2"}},
      {4, {"parallel.replicate=2", "parallel.shard=1", "parallel.tp=2", "parallel.tp_chunks=2"}},
  };
  for (const auto& [ranks, layout] : layouts) {
    SCOPED_TRACE(layout.front());
    const Outcome outcome = run("many", joined(kSteps, layout), ranks);
    ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
    expect_losses("many", "one");
    expect_same_files("many/model/model.safetensors", "one/model/model.safetensors");
    std::filesystem::remove_all(folder_ / "many");
  }
}

TEST_F(LayoutRun, AdaptersUnderMpirunAreOneRanks) {
  const Arguments lora =
      joined(kSteps, {"lora.rank=4", "lora.targets=[all-linear]", "lora.dropout=0.2", "optim.lr=1e-2"});
  ASSERT_EQ(run("one", lora, 0).exit_code, 0);
  for (const auto& [ranks, layout] : {std::pair(2, Arguments{"parallel.tp=2"}),
                                      {2, {"parallel.pp=2"}},
                                      {4, {"parallel.cp=2", "parallel.tp=2"}}}) {
    SCOPED_TRACE(layout.front());
    const Outcome outcome = run("many", joined(lora, layout), ranks);
    ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
    expect_losses("many", "one");
    expect_same_files("many/adapter/adapter_model.safetensors", "one/adapter/adapter_model.safetensors");
    std::filesystem::remove_all(folder_ / "many");
  }
}

// Windows of all lengths, and not as many as ranks.
std::vector<Window> some_windows(std::int64_t tokens, std::int32_t vocabulary) {
  std::vector<Window> windows;
  std::int32_t next = 1;
  for (const std::int64_t length : {tokens, tokens, tokens - 3, tokens, std::int64_t{2}}) {
    Window w;
    for (std::int64_t i = 0; i < length; ++i) {
      next = (next * 37 + 11) % vocabulary;
      w.ids.push_back(next);
      w.targets.push_back(next % 5 == 0 ? -100 : next * 7 % vocabulary);
    }
    windows.push_back(w);
  }
  return windows;
}

Perplexity evaluated(const std::string& config, const Arguments& overrides, int ranks) {
  std::vector<Perplexity> all(static_cast<std::size_t>(ranks));
  parallel::run_ranks(ranks, [&](parallel::Communicator& world) {
    config::RunConfig run = load_run_config(config, overrides);
    resolve(run, world.size());
    parallel::Groups groups(mesh_of(run), world);
    Trainer trainer(run, groups, Device::cpu);
    all[static_cast<std::size_t>(world.rank())] = trainer.evaluate(some_windows(32, 300));
  });
  for (const Perplexity& p : all) EXPECT_EQ(p.nll, all[0].nll);
  return all[0];
}

TEST_F(LayoutRun, EvaluationIsOneRanks) {
  if (on_gpu()) GTEST_SKIP() << "ranks that are threads share the CPU's memory";
  const Perplexity one = evaluated(tiny_.config, {}, 1);
  EXPECT_GT(one.tokens, 80);
  const std::pair<int, Arguments> layouts[] = {
      {2, {"parallel.tp=2", "parallel.sequence_parallel=true"}},
      {2, {"parallel.pp=2"}},
      {2, {"parallel.cp=2"}},
      {4, {"parallel.shard=4"}},
      {4, {"parallel.shard=2", "parallel.replicate=2", "parallel.stage=1"}},
      {8, {"parallel.shard=2", "parallel.cp=2", "parallel.tp=2"}},
      {8, {"parallel.pp=2", "parallel.cp=2", "parallel.tp=2", "train.micro_batch=1"}},
  };
  for (const auto& [ranks, layout] : layouts) {
    const Perplexity many = evaluated(tiny_.config, layout, ranks);
    EXPECT_EQ(many.tokens, one.tokens) << layout.front();
    EXPECT_NEAR(many.nll, one.nll, 1e-6 * one.nll) << layout.front();
  }
}

// One line, of rank 0, and exit code 1.
TEST_F(LayoutRun, LayoutsThatCannotBeAreNamedOnceWithWhatWouldDo) {
  const struct {
    int ranks;
    Arguments overrides;
    std::vector<std::string> parts;
  } cases[] = {
      {3, {"parallel.tp=2"}, {"tp 2", "3 ranks", "2 or 4"}},
      {2, {"parallel.tp=4"}, {"tp 4", "number of ranks, 2"}},
      {4, {"parallel.shard=1", "parallel.tp=2"}, {"makes 2 ranks", "4 were started"}},
      {3, {"parallel.tp=3"}, {"tp 3", "4 attention heads", "tp 2"}},
      {3, {"parallel.pp=3"}, {"pp 3", "2 blocks", "set pp to 2"}},
      {2, {"parallel.layers=[1]"}, {"2 blocks", "these are 1"}},
      {2, {"parallel.pp=2", "parallel.stages_per_rank=4294967298"}, {"4294967298", "2 blocks"}},
      {2,
       {"parallel.pp=2", "parallel.layers=[9223372036854775807, 9223372036854775807]"},
       {"2 blocks", "these are 9223372036854775807"}},
      {2, {"parallel.pp=2", "parallel.layers=[1, 2]"}, {"2 blocks", "these are 1, 2"}},
      {2, {"parallel.pp=2", "parallel.layers=[1]"}, {"lists 1", "give 2 numbers"}},
      {3, {"parallel.cp=3"}, {"32 tokens", "multiple of 6"}},
      {2,
       {"parallel.tp=2", "parallel.sequence_parallel=true", "data.sequence_length=33"},
       {"tp 2", "33 tokens"}},
      {3, {"parallel.shard=3"}, {"global_batch 4", "3 data-parallel", "3 or 6"}},
      {2, {"parallel.pp=2", "parallel.schedule=interleaved"}, {"4 stages", "2 blocks"}},
  };
  for (const auto& c : cases) {
    SCOPED_TRACE(c.overrides.back());
    const Outcome outcome = run("bad", c.overrides, c.ranks);
    EXPECT_EQ(outcome.exit_code, 1) << outcome.err;
    const auto said = complaints(outcome);  // mpirun adds its own words
    ASSERT_EQ(said.size(), 1u) << outcome.err;
    EXPECT_TRUE(said[0].starts_with("ridge: [rank 0 of ")) << said[0];
    for (const std::string& part : c.parts) EXPECT_NE(said[0].find(part), std::string::npos) << said[0];
    EXPECT_FALSE(std::filesystem::exists(folder_ / "bad"));
  }
}

}  // namespace
}  // namespace ridge
