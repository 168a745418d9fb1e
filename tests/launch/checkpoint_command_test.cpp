// `ridge checkpoint` on the checkpoints of small runs.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "core/base/dtype.h"
#include "tests/launch/train_helpers.h"

namespace ridge {
namespace {

using namespace test;
using Json = nlohmann::json;
namespace fs = std::filesystem;

class CheckpointCommand : public testing::Test {
 protected:
  // Runs to the end, with a checkpoint of the last step.
  void train(const std::string& output, Arguments more, const RunOptions& options = {}) const {
    Arguments words{"train", tiny_.config, "output=" + (folder_ / output), "train.steps=4",
                    "train.checkpoint_every=2"};
    words.insert(words.end(), more.begin(), more.end());
    must_run(words, options);
  }

  Json convert(const std::string& output, const Arguments& more) const {
    Arguments words{"checkpoint", "convert", folder_ / output, "--out", folder_ / "converted", "--json"};
    words.insert(words.end(), more.begin(), more.end());
    return Json::parse(must_run(words).out);
  }

  void expect_same_files(const std::string& folder, const std::string& other) const {
    const auto names = names_in(folder_ / other);
    ASSERT_FALSE(names.empty());
    EXPECT_EQ(names_in(folder_ / folder), names);
    for (const std::string& name : names)
      EXPECT_TRUE(read_text(folder_ / (folder + "/" + name)) == read_text(folder_ / (other + "/" + name)))
          << name;
  }

  TemporaryFolder folder_;
  TinyModel tiny_{folder_};
};

TEST_F(CheckpointCommand, InspectTellsWhatIsThere) {
  train("out", {}, {.ranks = 2});
  const Json found =
      Json::parse(must_run({"checkpoint", "inspect", folder_ / "out", "--verify", "--json"}).out);
  EXPECT_EQ(found.at("step"), 4);
  EXPECT_EQ(found.at("tokens"), 4 * 4 * 32);
  EXPECT_EQ(found.at("seed"), 7);
  EXPECT_EQ(found.at("format"), 2);
  EXPECT_EQ(found.at("weights_only"), false);
  EXPECT_EQ(found.at("verified"), true);
  EXPECT_TRUE(found.at("folder").get<std::string>().ends_with("step-00000004"));
  EXPECT_NE(found.at("layout").get<std::string>().find("2"), std::string::npos);
  std::uint64_t bytes = 0;
  for (const Json& file : found.at("files")) {
    const std::string path = found.at("folder").get<std::string>() + "/" + file.at("name").get<std::string>();
    EXPECT_EQ(file.at("bytes"), fs::file_size(path));
    bytes += file.at("bytes").get<std::uint64_t>();
  }
  EXPECT_EQ(found.at("bytes"), bytes);
  bool seen = false;
  for (const Json& tensor : found.at("tensors")) {
    if (tensor.at("name") != "model/model.embed_tokens.weight") continue;
    seen = true;
    EXPECT_EQ(tensor.at("dtype"), "f32");
    EXPECT_EQ(tensor.at("shape"), (std::vector<int>{300, 32}));
  }
  EXPECT_TRUE(seen);
  const std::string text = must_run({"checkpoint", "inspect", folder_ / "out"}).out;
  EXPECT_NE(text.find("optimizer/model.norm.weight.exp_avg_sq"), std::string::npos);
}

TEST_F(CheckpointCommand, VerifyFindsADamagedByte) {
  train("out", {});
  const std::string file = folder_ / "out/checkpoints/step-00000004/rank-00000.h5";
  {
    std::fstream bytes(file, std::ios::in | std::ios::out | std::ios::binary);
    bytes.seekg(static_cast<std::streamoff>(fs::file_size(file) / 2));
    const int byte = bytes.peek();
    bytes.seekp(bytes.tellg()).put(static_cast<char>(byte ^ 4));
  }
  expect_user_error(run_ridge({"checkpoint", "inspect", folder_ / "out", "--verify"}),
                    {"step-00000004/rank-00000.h5", "damaged"});
  must_run({"checkpoint", "inspect", folder_ / "out"});
}

// The model that the run saved at the same step.
TEST_F(CheckpointCommand, AModelIsThatOfTheRun) {
  train("out", {}, {.ranks = 2});
  const Json done = convert("out", {});
  EXPECT_EQ(done.at("kind"), "model");
  EXPECT_EQ(done.at("step"), 4);
  EXPECT_EQ(done.at("dtype"), "f32");
  expect_same_files("converted", "out/model");
}

TEST_F(CheckpointCommand, AnF32ModelOfABf16RunIsItsMasters) {
  train("out", {"train.precision=bf16"});
  convert("out", {});
  expect_same_files("converted", "out/model");
  fs::remove_all(folder_ / "converted");
  EXPECT_EQ(convert("out", {"--dtype", "f32"}).at("dtype"), "f32");
  const auto masters = SafetensorsFile::open(folder_ / "converted/model.safetensors");
  const auto rounded = SafetensorsFile::open(folder_ / "out/model/model.safetensors");
  std::size_t finer = 0;
  for (const TensorEntry& entry : masters.entries()) {
    const TensorEntry& other = rounded.at(entry.name);
    const std::vector<float> values = floats_of(entry);
    ASSERT_EQ(other.data.size(), 2 * values.size());
    for (std::size_t i = 0; i < values.size(); ++i) {
      bf16 stored;
      std::memcpy(&stored, other.data.data() + 2 * i, 2);
      // Of a tie the master may lie an ulp to the other side.
      const float near = static_cast<float>(bf16(values[i])), ulp = std::nextafter(values[i], 1e30f);
      EXPECT_TRUE(near == static_cast<float>(stored) ||
                  static_cast<float>(bf16(ulp)) == static_cast<float>(stored))
          << entry.name << " " << i << " " << values[i];
      finer += values[i] != static_cast<float>(stored) ? 1 : 0;
    }
  }
  EXPECT_GT(finer, 10000u) << "masters are finer than what is stored";
}

TEST_F(CheckpointCommand, AnAdapterIsThatOfTheRun) {
  tiny_.save();
  train("out", {"model.path=" + tiny_.model, "model.arch=null", "lora.rank=4", "lora.targets=[all-linear]",
                "lora.use_rslora=true"});
  const Json done = convert("out", {});
  EXPECT_EQ(done.at("kind"), "adapter");
  expect_same_files("converted", "out/adapter");
  expect_user_error(
      run_ridge({"checkpoint", "convert", folder_ / "out", "--out", folder_ / "x", "--dtype", "bf16"}),
      {"--dtype bf16", "f32"});
}

// From a Hugging Face folder and back, and a run that begins there.
TEST_F(CheckpointCommand, ARunBeginsFromAConvertedModel) {
  tiny_.save();
  train("whole", {"model.path=" + tiny_.model, "model.arch=null"});
  const Json made = Json::parse(
      must_run({"checkpoint", "convert", tiny_.model, "--to-checkpoint", "--config", tiny_.config, "--out",
                folder_ / "begun", "train.steps=4", "train.checkpoint_every=2", "--json"})
          .out);
  EXPECT_EQ(made.at("kind"), "checkpoint");
  EXPECT_TRUE(made.at("out").get<std::string>().ends_with("checkpoints/step-00000000"));
  const Json found = Json::parse(must_run({"checkpoint", "inspect", folder_ / "begun", "--json"}).out);
  EXPECT_EQ(found.at("weights_only"), true);
  convert("begun", {});
  EXPECT_TRUE(read_text(folder_ / "converted/model.safetensors") ==
              read_text(tiny_.model + "/model.safetensors"));
  train("begun", {"train.seed=7"}, {.ranks = 2});
  // Two ranks sum gradients in another order than one: compared with two.
  train("whole2", {"model.path=" + tiny_.model, "model.arch=null"}, {.ranks = 2});
  EXPECT_TRUE(read_text(folder_ / "begun/model/model.safetensors") ==
              read_text(folder_ / "whole2/model/model.safetensors"));
  EXPECT_FALSE(read_text(folder_ / "begun/model/model.safetensors") ==
               read_text(tiny_.model + "/model.safetensors"));
}

TEST_F(CheckpointCommand, MistakesAreNamed) {
  const Arguments convert{"checkpoint", "convert"};
  const auto refused = [&](Arguments more, const std::vector<std::string>& parts) {
    Arguments words = convert;
    words.insert(words.end(), more.begin(), more.end());
    expect_user_error(run_ridge(words), parts);
  };
  refused({folder_ / "nothing", "--out", folder_ / "x"}, {"nothing/manifest.txt", "missing"});
  refused({folder_ / "nothing"}, {"--out is required"});
  refused({folder_ / "nothing", "--out", folder_ / "x", "--dtype", "i8"}, {"--dtype i8", "bf16"});
  refused({tiny_.tokenizer, "--to-checkpoint"}, {"--config"});
  refused({tiny_.tokenizer, "--to-checkpoint", "--config", tiny_.config}, {tiny_.tokenizer, "config.json"});
  expect_user_error(run_ridge({"checkpoint", "inspect", folder_ / "nothing"}), {"nothing/manifest.txt"});
}

}  // namespace
}  // namespace ridge
