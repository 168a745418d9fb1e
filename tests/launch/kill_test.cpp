// Ranks that are killed: the job ends soon and says so, and the same command goes on from the last good
// checkpoint, bit for bit. RIDGE_KILL_TEST_KILLS=N kills each layout's run N times, RIDGE_KILL_TEST_SEED=S
// chooses other moments.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <random>
#include <thread>

#include "launch/checkpoint_manifest.h"
#include "launch/context.h"
#include "tests/launch/train_helpers.h"

namespace ridge {
namespace {

using namespace test;
using namespace std::chrono_literals;
using Json = nlohmann::json;
namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

constexpr int kSteps = 6;
constexpr auto kEnd = 30s;  // by then a job with a dead rank is gone
constexpr auto kPoll = 200us;

unsigned number_from(const char* variable, unsigned preset) {
  const char* text = std::getenv(variable);
  return text == nullptr ? preset : static_cast<unsigned>(std::stoul(text));
}

// Large enough that a checkpoint takes a while beside the steps.
constexpr const char* kArch =
    R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 256,
        "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
        "vocab_size": 300, "max_position_embeddings": 64, "rms_norm_eps": 1.0e-5,
        "tie_word_embeddings": false, "bos_token_id": 0, "eos_token_id": 0})";

// MPI's rank of a process; -1: it is none, or gone.
int rank_of(pid_t pid) {
  const std::string variables = read_text("/proc/" + std::to_string(pid) + "/environ");
  const std::string name = "OMPI_COMM_WORLD_RANK=";
  for (std::size_t at = 0; at < variables.size(); at = variables.find('\0', at) + 1)
    if (variables.compare(at, name.size(), name) == 0) return std::atoi(variables.c_str() + at + name.size());
  return -1;
}

// The processes of the ranks that mpirun started.
std::map<int, pid_t> ranks_of(const Process& mpirun) {
  std::map<int, pid_t> ranks;
  for (const pid_t pid : family_of(mpirun.pid()))
    if (const int rank = rank_of(pid); rank >= 0) ranks.emplace(rank, pid);
  return ranks;
}

struct StepValues {
  double loss, grad_norm;
  bool operator==(const StepValues&) const = default;
};

std::vector<StepValues> metrics_of(const std::string& output) {
  std::vector<StepValues> steps;
  for (const std::string& line : lines_of(read_text(output + "/metrics.jsonl"))) {
    const Json step = Json::parse(line);
    EXPECT_EQ(step.at("step"), steps.size()) << "each step once, in order";
    steps.push_back({step.at("loss"), step.at("grad_norm")});
  }
  return steps;
}

std::size_t steps_done(const std::string& output) {
  return lines_of(read_text(output + "/metrics.jsonl")).size();
}

// The folder of a checkpoint that is being written; empty: none is.
std::string unfinished_checkpoint(const std::string& output) {
  for (const std::string& name : names_in(output + "/checkpoints"))
    if (name.find(".tmp-") != std::string::npos) return output + "/checkpoints/" + name;
  return "";
}

// The newest checkpoint with a manifest; empty: none.
std::string last_good_checkpoint(const std::string& output) {
  std::string last;
  for (const std::string& name : names_in(output + "/checkpoints"))
    if (name.size() == 13 && fs::exists(output + "/checkpoints/" + name + "/manifest.txt")) last = name;
  return last;
}

// What is left of a run that was killed, and a finished one has no use for.
std::vector<std::string> leftovers(const std::string& output) {
  std::vector<std::string> found;
  for (const auto& entry : fs::recursive_directory_iterator(output)) {
    const std::string name = entry.path().filename();
    if (name.find(".tmp-") != std::string::npos || name.ends_with(".part") || name.ends_with(".failed"))
      found.push_back(entry.path());
  }
  return found;
}

enum class Moment { step, collective, checkpoint };

std::string name_of(Moment moment) {
  static const std::map<Moment, std::string> names{{Moment::step, "in a step"},
                                                   {Moment::collective, "while others wait for it"},
                                                   {Moment::checkpoint, "in a checkpoint"}};
  return names.at(moment);
}

// One run under mpirun that loses a rank.
class Victim {
 public:
  Victim(const Arguments& command, const RunOptions& options, std::string output, std::mt19937& rng)
      : process_(command, options), output_(std::move(output)), rng_(rng), ranks_(options.ranks) {}

  /// Whether the rank was killed; false: the run ended before.
  bool kill(Moment moment) {
    rank_ = static_cast<int>(rng_() % static_cast<unsigned>(ranks_));
    const std::size_t before = steps_done(output_);
    const bool came = moment == Moment::checkpoint ? checkpoint_comes(before) : step_comes(before);
    if (!came) return false;
    members_ = ranks_of(process_);
    if (static_cast<int>(members_.size()) != ranks_) return false;
    if (moment == Moment::collective) {
      ::kill(members_.at(rank_), SIGSTOP);
      sleep(300ms);  // the others come to their next collective and wait
    }
    killed_ = Clock::now();
    return ::kill(members_.at(rank_), SIGKILL) == 0;
  }

  /// Expects that all ends in time, with a message of the launcher and an exit code.
  void expect_end() {
    while (process_.running() && Clock::now() - killed_ < kEnd) std::this_thread::sleep_for(kPoll);
    ASSERT_FALSE(process_.running()) << "the job goes on without its rank " << rank_;
    const Outcome& outcome = process_.wait();
    EXPECT_NE(outcome.exit_code, 0) << outcome.err;
    EXPECT_EQ(outcome.out, "");
    const std::string message = "process rank " + std::to_string(rank_) + " with PID";
    const std::size_t found = outcome.err.find(message);
    EXPECT_NE(found, std::string::npos) << message << " is not in:\n" << outcome.err;
    EXPECT_NE(outcome.err.find("signal 9", found), std::string::npos) << outcome.err;
    EXPECT_EQ(complaints(outcome), std::vector<std::string>{}) << "what ranks say beside it";
    for (const auto& [rank, pid] : members_) {
      while (rank_of(pid) == rank && Clock::now() - killed_ < kEnd) std::this_thread::sleep_for(kPoll);
      EXPECT_NE(rank_of(pid), rank) << "rank " << rank << " goes on alone";
    }
  }

  int rank() const { return rank_; }
  double seconds_to_end() { return std::chrono::duration<double>(Clock::now() - killed_).count(); }
  std::string errors() { return process_.wait().err; }

 private:
  // From the start on, or some steps later and in the middle of one.
  bool step_comes(std::size_t before) {
    const std::size_t steps = std::min<std::size_t>(before + rng_() % 4, kSteps - 1);
    while (process_.running() && (steps_done(output_) < steps || ranks_of(process_).empty())) pause();
    if (steps_done(output_) == 0) sleep(random_below(2s));
    sleep(random_below(60ms));
    return process_.running();
  }

  // In the middle of a save, with an older checkpoint beside it.
  bool checkpoint_comes(std::size_t before) {
    const std::size_t steps = std::min<std::size_t>(before + 2 + rng_() % 2, kSteps - 1);
    while (process_.running() && (steps_done(output_) < steps || unfinished_checkpoint(output_).empty()))
      pause();
    sleep(random_below(10ms));
    return process_.running();
  }

  std::chrono::microseconds random_below(std::chrono::microseconds most) {
    return most * (rng_() % 1000) / 1000;
  }
  static void pause() { std::this_thread::sleep_for(kPoll); }
  void sleep(std::chrono::microseconds time) {
    for (const auto end = Clock::now() + time; Clock::now() < end && process_.running();) pause();
  }

  Process process_;
  std::string output_;
  std::mt19937& rng_;
  int ranks_;
  int rank_ = 0;
  std::map<int, pid_t> members_;
  Clock::time_point killed_;
};

struct Layout {
  const char* name;
  int ranks;
  Arguments words;
  int other_ranks;  // a layout that goes on in its place
  Arguments other_words;
};

std::ostream& operator<<(std::ostream& out, const Layout& layout) { return out << layout.name; }

const Layout kLayouts[] = {
    {"shard2", 2, {"parallel.shard=2", "parallel.stage=3"}, 2, {"parallel.tp=2"}},
    {"tp2", 2, {"parallel.tp=2", "parallel.sequence_parallel=true"}, 2, {"parallel.pp=2"}},
    {"pp2", 2, {"parallel.pp=2", "train.micro_batch=1"}, 2, {"parallel.cp=2"}},
    {"cp2", 2, {"parallel.cp=2"}, 1, {}},
    {"mixed4",
     4,
     {"parallel.pp=2", "parallel.tp=2", "train.micro_batch=2"},
     2,
     {"parallel.shard=2", "parallel.stage=1"}}};

class KillTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string config = read_text(tiny_.config);
    config.replace(config.find(kTinyArch), std::string(kTinyArch).size(), kArch);
    write_text(tiny_.config, config);
  }

  Arguments command(const std::string& output, const Arguments& more) const {
    Arguments words{"train",
                    tiny_.config,
                    "output=" + at(output),
                    "train.steps=" + std::to_string(kSteps),
                    "optim.lr=1.0e-3",
                    "train.checkpoint_every=1",
                    "--json"};
    words.insert(words.end(), more.begin(), more.end());
    return words;
  }
  std::string at(const std::string& name) const { return folder_ / name; }

  TemporaryFolder folder_;
  TinyModel tiny_{folder_};
};

class KilledRank : public KillTest, public testing::WithParamInterface<Layout> {
 protected:
  void SetUp() override {
    KillTest::SetUp();
    seed_ = number_from("RIDGE_KILL_TEST_SEED", std::random_device{}());
    rng_.seed(seed_);
    options_ = with_launcher_variables({.ranks = GetParam().ranks});
    must_run(command("whole", GetParam().words), options_);
  }

  // What the next start says first; after a kill, no process of the run is left to change it.
  void expect_resumed(const std::string& err, const std::string& checkpoint) {
    if (checkpoint.empty()) {
      EXPECT_EQ(err.find("resumed after"), std::string::npos) << err;
    } else {
      const std::string line =
          "resumed after step " + std::to_string(std::stoi(checkpoint.substr(5)) - 1) + "\n";
      EXPECT_NE(err.find(line), std::string::npos) << line << err;
    }
  }

  // Starts the run and kills a rank of it; false where it was faster.
  bool lose_a_rank(Moment moment) {
    const std::string before = last_good_checkpoint(at("out"));
    Victim victim(ridge_command(command("out", GetParam().words), options_), options_, at("out"), rng_);
    const bool killed = victim.kill(moment);
    if (killed) victim.expect_end();
    const std::string err = victim.errors();
    story_ +=
        fmt::format("rank {} killed {} (it ended {:.1f} s later, after {} steps, last checkpoint '{}'); ",
                    victim.rank(), name_of(moment), killed ? victim.seconds_to_end() : 0.0,
                    steps_done(at("out")), last_good_checkpoint(at("out")));
    if (err.find("\nstep ") != std::string::npos) expect_resumed(err, before);
    return killed;
  }

  void expect_as_never_disturbed(const Outcome& last) {
    EXPECT_EQ(Json::parse(last.out).at("steps"), kSteps);
    EXPECT_EQ(metrics_of(at("out")), metrics_of(at("whole")));
    const std::string weights = "/model/model.safetensors";
    EXPECT_FALSE(read_text(at("whole") + weights).empty());
    EXPECT_TRUE(read_text(at("out") + weights) == read_text(at("whole") + weights))
        << "the final weights differ";
    EXPECT_EQ(names_in(at("out/checkpoints")), names_in(at("whole/checkpoints")));
    EXPECT_EQ(leftovers(at("out")), std::vector<std::string>{});
  }

  // A copy of the run goes on in another layout.
  void expect_another_layout_goes_on() {
    const Layout& layout = GetParam();
    Arguments words = layout.other_words;
    words.push_back("train.checkpoint_every=0");
    const std::string checkpoint = last_good_checkpoint(at("other"));
    const Outcome outcome =
        must_run(command("other", words), {.ranks = layout.other_ranks > 1 ? layout.other_ranks : 0});
    expect_resumed(outcome.err, checkpoint);
    const auto found = metrics_of(at("other")), wanted = metrics_of(at("whole"));
    ASSERT_EQ(found.size(), wanted.size());
    for (std::size_t i = 0; i < found.size(); ++i)
      EXPECT_NEAR(found[i].loss, wanted[i].loss, 1e-5 * wanted[i].loss) << "step " << i;
  }

  unsigned seed_ = 0;
  std::mt19937 rng_;
  RunOptions options_;
  std::string story_;
};

TEST_P(KilledRank, SlowEndsTheJobWhichGoesOnBitForBit) {
  const unsigned kills = number_from("RIDGE_KILL_TEST_KILLS", 2);
  unsigned killed = 0;
  for (unsigned tries = 0, first = rng_() % 3; killed < kills && tries < 2 * kills + 2; ++tries) {
    if (steps_done(at("out")) >= kSteps) fs::remove_all(at("out"));
    if (lose_a_rank(static_cast<Moment>((first + killed) % 3))) ++killed;
    if (HasFatalFailure()) break;
  }
  std::fprintf(stderr, "RIDGE_KILL_TEST_SEED=%u: %s\n", seed_, story_.c_str());
  SCOPED_TRACE("seed " + std::to_string(seed_) + ": " + story_);
  EXPECT_GE(killed, 1u);
  fs::create_directories(at("out"));  // a rank may be killed before the run made it
  fs::copy(at("out"), at("other"), fs::copy_options::recursive);
  const std::string checkpoint = last_good_checkpoint(at("out"));
  const Outcome last = must_run(command("out", GetParam().words), options_);
  expect_resumed(last.err, checkpoint);
  expect_as_never_disturbed(last);
  expect_another_layout_goes_on();
}

INSTANTIATE_TEST_SUITE_P(Layouts, KilledRank, testing::ValuesIn(kLayouts),
                         [](const auto& info) { return std::string(info.param.name); });

// All ranks see it, and one speaks.
void expect_refused(const Outcome& outcome, const std::vector<std::string>& parts) {
  EXPECT_EQ(outcome.exit_code, 1) << outcome.err;
  EXPECT_EQ(outcome.out, "");
  const auto lines = complaints(outcome);
  ASSERT_EQ(lines.size(), 1u) << outcome.err;
  for (const std::string& part : parts)
    EXPECT_NE(lines[0].find(part), std::string::npos) << "'" << part << "' is not in: " << lines[0];
}

class DamagedCheckpoint : public KillTest {
 protected:
  void SetUp() override {
    KillTest::SetUp();
    const Arguments small{"model.arch.hidden_size=64", "model.arch.intermediate_size=96", "train.steps=2"};
    Arguments shard = small;
    shard.push_back("parallel.shard=2");
    must_run(command("out", shard), {.ranks = 2});
    again_ = small;
    again_.push_back("parallel.tp=2");
  }

  // The run goes on in a layout of which both ranks need both files.
  Outcome start() { return run_ridge(command("out", again_), {.ranks = 2}); }

  const std::string folder_of_step_ = at("out/checkpoints/step-00000002");
  const std::string file_ = folder_of_step_ + "/rank-00001.h5";
  Arguments again_;
};

TEST_F(DamagedCheckpoint, IsNamedInOneLine) {
  const std::string bytes = read_text(file_);
  ASSERT_GT(bytes.size(), 1000u);
  fs::remove(file_);
  expect_refused(start(), {file_, "missing", "remove that folder"});
  write_text(file_, bytes.substr(0, bytes.size() - 1));
  expect_refused(start(), {file_, "damaged", std::to_string(bytes.size()), std::to_string(bytes.size() - 1)});
  std::string flipped = bytes;
  flipped[bytes.size() / 2] ^= 4;
  write_text(file_, flipped);
  expect_refused(start(), {file_, "damaged", "checksum", "remove that folder"});

  write_text(file_, bytes);
  const std::string manifest = folder_of_step_ + "/manifest.txt", text = read_text(manifest);
  ASSERT_TRUE(text.starts_with("ridge-checkpoint 2 "));
  write_text(manifest, "ridge-checkpoint 3 9.8.7\n" + text.substr(text.find('\n') + 1));
  expect_refused(start(), {manifest, "format 3", "9.8.7", "is not 2", "newer"});
  fs::remove_all(folder_of_step_);
  EXPECT_NE(must_run(command("out", again_), {.ranks = 2}).err.find("resumed after step 0"),
            std::string::npos);
}

// What `body` says.
template <class Body>
std::string complaint_of(const Body& body) {
  try {
    body();
  } catch (const UserError& error) {
    return error.what();
  }
  return "";
}

TEST(MixedPrograms, AreRefusedBeforeTheFirstStep) {
  const auto start = [](const std::string& last) {
    return complaint_of([&] {
      parallel::run_ranks(3, [&](parallel::Communicator& ranks) {
        require_one_program(ranks, ranks.rank() == 2 ? last : "1.2.3");
      });
    });
  };
  EXPECT_EQ(start("1.2.3"), "");
  EXPECT_EQ(start("1.2.30"),
            "rank 0 runs ridge 1.2.3 and rank 2 runs ridge 1.2.30: start all of them with the same program");
}

TEST(MixedPrograms, MakeNoCheckpoint) {
  std::vector<CheckpointManifest> parts(2);
  parts[0].program = "1.2.3";
  parts[1].program = "1.2.4";
  const std::string found = complaint_of([&] { join_manifests(parts); });
  for (const char* part : {"ridge 1.2.3", "ridge 1.2.4"})
    EXPECT_NE(found.find(part), std::string::npos) << found;
}

}  // namespace
}  // namespace ridge
