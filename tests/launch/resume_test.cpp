// Runs that are killed and started again with the same command, and checkpoints that cannot be used.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "tests/launch/train_helpers.h"

namespace ridge {
namespace {

using namespace test;
using namespace std::chrono_literals;
using Json = nlohmann::json;
namespace fs = std::filesystem;

constexpr int kSteps = 12;

class ResumeTest : public testing::Test {
 protected:
  Arguments command(const std::string& output, const Arguments& more) const {
    Arguments words{"train", tiny_.config, "output=" + (folder_ / output), "--json"};
    words.insert(words.end(), more.begin(), more.end());
    return words;
  }

  std::string at(const std::string& name) const { return folder_ / name; }

  TemporaryFolder folder_;
  TinyModel tiny_{folder_};
};

std::vector<std::pair<double, double>> losses_and_norms(const std::string& output) {
  std::vector<std::pair<double, double>> values;
  for (const std::string& line : lines_of(read_text(output + "/metrics.jsonl"))) {
    const Json step = Json::parse(line);
    EXPECT_EQ(step.at("step"), values.size()) << "each step once, in order";
    values.emplace_back(step.at("loss"), step.at("grad_norm"));
  }
  return values;
}

// Every file of a run's result, byte for byte.
void expect_same_result(const std::string& output, const std::string& reference, const std::string& result) {
  const auto names = names_in(reference + "/" + result);
  ASSERT_FALSE(names.empty());
  EXPECT_EQ(names_in(output + "/" + result), names);
  for (const std::string& name : names) {
    const std::string file = "/" + result + "/" + name;
    EXPECT_TRUE(read_text(output + file) == read_text(reference + file)) << name;
  }
  EXPECT_EQ(losses_and_norms(output), losses_and_norms(reference));
}

// Names that a finished run has no use for.
std::vector<std::string> leftovers(const std::string& output) {
  std::vector<std::string> found;
  for (const auto& entry : fs::recursive_directory_iterator(output)) {
    const std::string name = entry.path().filename();
    if (name.find(".tmp-") != std::string::npos) found.push_back(entry.path());
  }
  return found;
}

// A random moment to kill a run at.
class Moment {
 public:
  Moment(unsigned seed, std::string output) : rng_(seed), output_(std::move(output)) {}

  /// Returns when the moment has come, or the run has ended.
  void wait_for(Process& process) {
    switch (kind_ = static_cast<int>(rng_() % 4)) {
      case 0:  // any time from the start on
        return sleep(process, 1500ms);
      case 1: {  // at a step
        const auto lines = 1 + rng_() % (kSteps - 1);
        while (process.running() && lines_of(read_text(output_ + "/metrics.jsonl")).size() < lines) pause();
        return sleep(process, 20ms);
      }
      case 2: {  // while a checkpoint is written
        const auto after = rng_() % kSteps;
        while (process.running() &&
               (lines_of(read_text(output_ + "/metrics.jsonl")).size() < after || !writes("/checkpoints")))
          pause();
        return sleep(process, 4ms);
      }
      default:  // while the result is written
        while (process.running() && !writes("")) pause();
        return sleep(process, 2ms);
    }
  }
  std::string name() const {
    static const char* const kNames[] = {"any time", "at a step", "in a checkpoint", "in the result"};
    return kNames[kind_];
  }

 private:
  static void pause() { std::this_thread::sleep_for(200us); }

  // Below this much, and no longer than the run goes on.
  void sleep(Process& process, std::chrono::microseconds most) {
    const auto end = std::chrono::steady_clock::now() + most * (rng_() % 1000) / 1000;
    while (std::chrono::steady_clock::now() < end && process.running()) pause();
  }
  bool writes(const std::string& folder) const {
    const auto names = names_in(output_ + folder);
    return std::any_of(names.begin(), names.end(), [](const std::string& name) {
      return name.find(".tmp-") != std::string::npos && !name.starts_with("config.yaml");
    });
  }

  std::mt19937 rng_;
  std::string output_;
  int kind_ = 0;
};

struct Trial {
  unsigned seed;
  int ranks;  // 0: without mpirun
};

class ResumeAfterKill : public ResumeTest, public testing::WithParamInterface<Trial> {
 protected:
  // What is trained differs from trial to trial.
  Arguments overrides() {
    const unsigned seed = GetParam().seed;
    Arguments words{"train.steps=" + std::to_string(kSteps),
                    "train.checkpoint_every=" + std::to_string(1 + seed % 3),
                    "train.keep_checkpoints=" + std::to_string(1 + seed % 2)};
    if (seed % 3 == 1) {
      tiny_.save();
      result_ = "adapter";
      words.insert(words.end(), {"model.path=" + tiny_.model, "model.arch=null", "lora.rank=4",
                                 "lora.targets=[all-linear]", "lora.dropout=0.2"});
    } else if (seed % 3 == 2) {
      words.insert(words.end(), {"train.precision=bf16", "train.recompute=blocks", "train.micro_batch=1"});
    }
    return words;
  }

  // All of a run, or one rank of it.
  void kill(const Process& process, std::mt19937& rng) const {
    std::vector<pid_t> family = family_of(process.pid());
    if (GetParam().ranks == 0 || rng() % 2 == 0 || family.size() < 2) return process.kill(SIGKILL);
    ::kill(family[1 + rng() % (family.size() - 1)], SIGKILL);
  }

  std::string result_ = "model";
};

TEST_P(ResumeAfterKill, SlowSameBits) {
  const RunOptions options = with_launcher_variables({.ranks = GetParam().ranks});
  const Arguments words = overrides();
  must_run(command("whole", words), options);
  std::mt19937 rng(GetParam().seed);
  Moment moment(GetParam().seed * 1000 + 1, at("out"));
  std::string story;
  int killed = 0;
  for (int tries = 0; tries < 8 && killed < 3; ++tries) {
    Process process(ridge_command(command("out", words), options), options);
    moment.wait_for(process);
    kill(process, rng);
    if (process.wait().exit_code == 0) {  // it was faster than the moment
      if (killed > 0) break;
      fs::remove_all(at("out"));
      continue;
    }
    ASSERT_NE(process.wait().exit_code, 1) << story << process.wait().err;
    story += "killed " + moment.name() + "; ";
    ++killed;
  }
  SCOPED_TRACE(story);
  EXPECT_GE(killed, 1);
  must_run(command("out", words), options);
  expect_same_result(at("out"), at("whole"), result_);
  EXPECT_EQ(names_in(at("out/checkpoints")), names_in(at("whole/checkpoints")));
  EXPECT_EQ(names_in(at("out/checkpoints")).size(), 1 + GetParam().seed % 2);
  EXPECT_EQ(leftovers(at("out")), std::vector<std::string>{});
}

INSTANTIATE_TEST_SUITE_P(Moments, ResumeAfterKill,
                         testing::Values(Trial{0, 0}, Trial{1, 0}, Trial{2, 0}, Trial{3, 0}, Trial{4, 0},
                                         Trial{5, 0}, Trial{6, 0}, Trial{7, 0}, Trial{8, 0}, Trial{9, 0},
                                         Trial{10, 2}, Trial{11, 2}, Trial{12, 2}, Trial{13, 2}),
                         [](const auto& info) {
                           return "seed" + std::to_string(info.param.seed) +
                                  (info.param.ranks > 0 ? "_ranks" + std::to_string(info.param.ranks) : "");
                         });

TEST_F(ResumeTest, AFinishedRunStartsAgain) {
  const Arguments words = command("out", {"train.checkpoint_every=5"});
  must_run(words);
  fs::copy(at("out"), at("whole"), fs::copy_options::recursive);
  const Outcome again = must_run(words);
  EXPECT_NE(again.err.find("resumed after step 9"), std::string::npos) << again.err;
  expect_same_result(at("out"), at("whole"), "model");
  must_run(command("even", {"train.checkpoint_every=6"}));
  EXPECT_EQ(Json::parse(must_run(command("even", {"train.checkpoint_every=6"})).out).at("steps"), kSteps);
  expect_same_result(at("even"), at("whole"), "model");
}

TEST_F(ResumeTest, MoreStepsGoOnWhereARunEnded) {
  must_run(command("whole", {}));
  must_run(command("out", {"train.steps=6", "train.checkpoint_every=3"}));
  must_run(command("out", {"train.steps=12", "train.checkpoint_every=4"}));
  expect_same_result(at("out"), at("whole"), "model");
}

TEST_F(ResumeTest, OtherRanksGoOn) {
  must_run(command("whole", {}));
  must_run(command("out", {"train.steps=6", "train.checkpoint_every=6"}));
  must_run(command("out", {}), {.ranks = 2});
  const auto found = losses_and_norms(at("out")), wanted = losses_and_norms(at("whole"));
  ASSERT_EQ(found.size(), wanted.size());
  for (std::size_t i = 0; i < found.size(); ++i) EXPECT_NEAR(found[i].first, wanted[i].first, 1e-5) << i;
}

// Files that stop growing stand for a disk that is full: the write fails in the same calls.
TEST_F(ResumeTest, AFullDiskKeepsThePreviousCheckpoint) {
  must_run(command("whole", {"train.checkpoint_every=3"}));
  const auto size =
      static_cast<std::int64_t>(fs::file_size(at("whole/checkpoints/step-00000012/rank-00000.h5")));
  for (const std::int64_t limit : {size - 1, size / 2, std::int64_t{20000}}) {
    fs::remove_all(at("out"));
    must_run(command("out", {"train.steps=6", "train.checkpoint_every=3"}));
    const Outcome full = run_ridge(command("out", {"train.checkpoint_every=3"}), {.file_bytes = limit});
    expect_user_error(full, {"checkpoints/step-00000009", "write"});
    EXPECT_EQ(names_in(at("out/checkpoints")), (std::vector<std::string>{"step-00000003", "step-00000006"}));
    EXPECT_EQ(leftovers(at("out")), std::vector<std::string>{});
    const Outcome after = must_run(command("out", {"train.checkpoint_every=3"}));
    EXPECT_NE(after.err.find("resumed after step 5"), std::string::npos) << after.err;
    expect_same_result(at("out"), at("whole"), "model");
  }
}

TEST_F(ResumeTest, AFullDiskLeavesNoHalfResult) {
  const Outcome full = run_ridge(command("out", {}), {.file_bytes = 50000});
  expect_user_error(full, {"model.safetensors", "write"});
  EXPECT_FALSE(fs::exists(at("out/model")));
  EXPECT_EQ(leftovers(at("out")), std::vector<std::string>{});
  expect_user_error(run_ridge(command("tiny", {}), {.file_bytes = 700}), {"config.yaml", "write"});
}

TEST_F(ResumeTest, ADamagedCheckpointIsRefused) {
  const Arguments words = command("out", {"train.checkpoint_every=4"});
  must_run(words);
  fs::copy(at("out"), at("whole"), fs::copy_options::recursive);
  const std::string newest = at("out/checkpoints/step-00000012");
  std::string bytes = read_text(newest + "/rank-00000.h5");
  bytes[bytes.size() / 2] ^= 16;
  write_text(newest + "/rank-00000.h5", bytes);
  expect_user_error(run_ridge(words), {newest, "rank-00000.h5", "damaged", "remove"});
  fs::remove_all(newest);
  const Outcome after = must_run(words);
  EXPECT_NE(after.err.find("resumed after step 7"), std::string::npos) << after.err;
  expect_same_result(at("out"), at("whole"), "model");
}

TEST_F(ResumeTest, AnotherRunsCheckpointIsRefused) {
  must_run(command("out", {"train.checkpoint_every=6"}));
  const std::string config = read_text(at("out/config.yaml")), metrics = read_text(at("out/metrics.jsonl"));
  const struct {
    Arguments changes;
    std::vector<std::string> parts;
  } cases[] = {{{"optim.lr=0.002"}, {"optim.lr", "0.003", "0.002"}},
               {{"data.seed=6"}, {"data.seed", "5", "6"}},
               {{"train.global_batch=8"}, {"train.global_batch", "4", "8"}},
               {{"model.arch.hidden_size=16"}, {"model.arch.hidden_size", "32", "16"}},
               {{"lora.rank=2"}, {"lora"}}};
  for (const auto& [changes, parts] : cases) {
    std::vector<std::string> wanted = parts;
    wanted.insert(wanted.end(), {"checkpoints/step-00000012", "another run"});
    expect_user_error(run_ridge(command("out", changes)), wanted);
  }
  EXPECT_EQ(read_text(at("out/config.yaml")), config);
  EXPECT_EQ(read_text(at("out/metrics.jsonl")), metrics);
}

}  // namespace
}  // namespace ridge
