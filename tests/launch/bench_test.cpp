// `ridge bench` over ranks: the numbers are there and hang together.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/launch/run_program.h"

namespace ridge {
namespace {

using namespace test;
using Json = nlohmann::json;

const std::string kModel = data_file("models/llama3");

Json json_of(const Arguments& words, int ranks) {
  const Outcome outcome = must_run(words, {.ranks = ranks});
  EXPECT_EQ(lines_of(outcome.out).size(), 1u);
  return Json::parse(outcome.out, nullptr, false);
}

Json train(const Arguments& layout) {
  Arguments words{"bench", "train",        "--model", kModel,    "--batch", "2",      "--sequence-length",
                  "64",    "--accumulate", "4",       "--steps", "2",       "--json", "--parallel"};
  words.insert(words.end(), layout.begin(), layout.end());
  return json_of(words, 2);
}

TEST(Bench, APipelineHasItsBubbleMeasured) {
  const Json piped = train({"pp=2"});
  EXPECT_NEAR(piped.at("even_bubble_share").get<double>(), 1.0 / 5,
              1e-9);  // (ranks - 1) / (micro + ranks - 1)
  for (const char* key : {"bubble_share", "schedule_bubble_share"}) {
    EXPECT_GT(piped.at(key), 0) << key;
    EXPECT_LT(piped.at(key), 1) << key;
  }
  EXPECT_GT(piped.at("predicted_seconds"), 0);
  EXPECT_EQ(piped.at("layout"), "pp 2");
  EXPECT_TRUE(train({"shard=2"}).at("bubble_share").is_null());
}

TEST(Bench, AttentionBesideOneRank) {
  for (const char* kind : {"ring", "ulysses"}) {
    const Json a = json_of(
        {"bench", "attention", "--sequence-length", "64", "--heads", "4", "--kv-heads", "2", "--head-dim",
         "8", "--batch", "2", "--context", kind, "--dtype", "f32", "--steps", "2", "--json"},
        2);
    const double seconds = a.at("seconds"), whole = a.at("whole_seconds"), rate = a.at("flops_per_s");
    EXPECT_GT(seconds, 0);
    EXPECT_NEAR(a.at("efficiency").get<double>(), whole / seconds / 2, 1e-9);
    // 4 products forward and 10 backward of 8 elements, for 64 * 65 / 2 pairs in 4 heads and 2 sequences.
    EXPECT_NEAR(rate * seconds * 2, 14.0 * 8 * 64 * 65 / 2 * 4 * 2, 1);
  }
}

TEST(Bench, AttentionThatCannotBeIsSaid) {
  const auto run = [](const Arguments& more) {
    Arguments words{"bench", "attention", "--sequence-length", "64", "--dtype", "f32"};
    words.insert(words.end(), more.begin(), more.end());
    return run_ridge(words);
  };
  expect_user_error(run({"--heads", "6", "--kv-heads", "4"}), {"6 heads", "4 KV heads"});
  expect_user_error(run({"--steps", "0"}), {"--steps is 0"});
  expect_user_error(run({"--context", "star"}), {"star", "ring", "ulysses"});
}

class CheckpointBench : public testing::Test {
 protected:
  Arguments words(const Arguments& more) const {
    Arguments all{"bench", "checkpoint",        "--model", kModel,    "--out", out_,    "--batch",
                  "2",     "--sequence-length", "32",      "--steps", "2",     "--json"};
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }
  TemporaryFolder folder_;
  const std::string out_ = folder_ / "out";
};

TEST_F(CheckpointBench, WritesAndReadsEveryByteOnce) {
  const Json c = json_of(words({"--parallel", "shard=2", "--load-parallel", "tp=1", "pp=2"}), 2);
  const Json info = Json::parse(must_run({"info", "--model", kModel, "--json"}).out);
  const double bytes = c.at("bytes");
  EXPECT_EQ(bytes, 12 * info.at("parameters").get<double>());  // a weight and two moments, f32
  EXPECT_EQ(c.at("layout"), "shard 2");
  EXPECT_EQ(c.at("load_layout"), "pp 2");
  EXPECT_NEAR(c.at("written_bytes_per_s").get<double>() * c.at("written_seconds").get<double>(), bytes, 1);
  EXPECT_NEAR(c.at("load_bytes_per_s").get<double>() * c.at("load_seconds").get<double>(), bytes, 1);
  for (const char* key : {"step_seconds", "stall_seconds", "first_step_seconds", "steps_beside"})
    EXPECT_GT(c.at(key), 0) << key;
  EXPECT_GE(c.at("first_step_seconds"), c.at("snapshot_seconds"));
  EXPECT_TRUE(names_in(out_).empty()) << "the checkpoint is removed";
}

TEST_F(CheckpointBench, KeepsItIfAsked) {
  json_of(words({"--keep"}), 1);
  EXPECT_EQ(names_in(out_ + "/checkpoints"), Arguments{"step-00000001"});
  expect_user_error(run_ridge(words({})), {out_, "has checkpoints already"});
  EXPECT_EQ(names_in(out_ + "/checkpoints"), Arguments{"step-00000001"});
}

TEST_F(CheckpointBench, AFolderThatCannotBeIsSaid) {
  write_text(out_, "a file");
  expect_user_error(run_ridge(words({})), {"--out", out_});
}

}  // namespace
}  // namespace ridge
