// What commands write to: nothing that was there is lost, and a finished run says that it is.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/launch/train_helpers.h"

namespace ridge {
namespace {

using namespace test;
using Json = nlohmann::json;
namespace fs = std::filesystem;

class OutputFolder : public testing::Test {
 protected:
  std::string at(const std::string& name) const { return folder_ / name; }
  Arguments train(const Arguments& more) const {
    Arguments words{"train", tiny_.config, "train.steps=4"};
    words.insert(words.end(), more.begin(), more.end());
    return words;
  }
  // Every file below a folder with its content.
  static std::map<std::string, std::string> files_below(const std::string& folder) {
    std::map<std::string, std::string> files;
    for (const auto& entry : fs::recursive_directory_iterator(folder)) {
      if (entry.is_regular_file()) files[entry.path().string()] = read_text(entry.path().string());
    }
    return files;
  }

  TemporaryFolder folder_;
  TinyModel tiny_{folder_};
};

TEST_F(OutputFolder, CommandsReplaceNoFolder) {
  const std::string adapter = data_file("models/adapters/plain"), base = data_file("models/llama3");
  must_run(train({"train.checkpoint_every=2"}));
  fs::create_directory(at("taken"));
  fs::create_directory(at("empty"));
  write_text(at("taken/thesis.txt"), "x");
  write_text(at("file"), "x");
  fs::copy(base, at("llama"), fs::copy_options::recursive);
  const auto before = files_below(folder_.path());
  const Arguments commands[] = {{"quantize", "--model", at("llama"), "--format", "nf4"},
                                {"merge", "--model", at("llama"), "--adapter", adapter},
                                {"checkpoint", "convert", at("out")}};
  for (const Arguments& command : commands) {
    const auto refused = [&](const std::string& out, const std::vector<std::string>& parts) {
      Arguments words = command;
      words.insert(words.end(), {"--out", out});
      expect_user_error(run_ridge(words, {.folder = at("empty")}), parts);
    };
    refused(at("taken"), {"--out", at("taken"), "thesis.txt", "1 file"});
    refused(at("taken/"), {"thesis.txt"});
    refused(at("llama"), {at("llama"), "config.json"});
    refused(at("out"), {at("out"), "checkpoints"});
    refused(".", {"--out .", "runs in"});
    refused("../empty", {"runs in"});
    refused(at("file"), {at("file"), "a file has that name"});
    refused(at("none/there"), {at("none"), "make it"});
    refused("", {"--out"});
  }
  EXPECT_TRUE(files_below(folder_.path()) == before);
  for (std::size_t i = 0; i < std::size(commands); ++i) {
    Arguments words = commands[i];
    fs::create_directory(at("new" + std::to_string(i)));
    words.insert(words.end(), {"--out", at("new" + std::to_string(i)) + "/"});
    must_run(words);
    EXPECT_TRUE(fs::exists(at("new" + std::to_string(i) + "/config.json")));
  }
  EXPECT_EQ(names_in(at("empty")), Arguments{});
}

TEST_F(OutputFolder, ARunBeginsOnlyWhereNoneWas) {
  tiny_.save();
  const Arguments convert{"checkpoint", "convert", tiny_.model, "--to-checkpoint", "--config",
                          tiny_.config, "--out",   at("out"),   "train.steps=4"};
  must_run(convert);
  must_run(train({"train.checkpoint_every=2"}));
  const auto before = files_below(at("out"));
  expect_user_error(run_ridge(convert), {at("out"), "step-00000004", "another output"});
  EXPECT_TRUE(files_below(at("out")) == before);
}

TEST_F(OutputFolder, ARunReplacesItsOwnResultAlone) {
  must_run(train({}));
  const std::string first = read_text(at("out/model/model.safetensors"));
  must_run(train({"train.seed=8"}));
  EXPECT_NE(read_text(at("out/model/model.safetensors")), first);
  write_text(at("out/model/thesis.txt"), "x");
  auto before = files_below(at("out"));
  expect_user_error(run_ridge(train({})), {at("out/model"), "thesis.txt", "another output"});
  EXPECT_TRUE(files_below(at("out")) == before);

  tiny_.save();
  const Arguments other{"output=" + at("other")},
      lora{"model.path=" + tiny_.model, "model.arch=null", "lora.rank=2", "output=" + at("other")};
  fs::create_directories(at("other/model"));
  must_run(train(lora));  // an adapter: the model stays
  fs::create_directory(at("third"));
  fs::copy(tiny_.model, at("third/model"), fs::copy_options::recursive);
  before = files_below(at("third"));
  expect_user_error(run_ridge(train({"output=" + at("third")})), {at("third/model"), "no run"});
  expect_user_error(
      run_ridge(train({"output=" + at("third"), "model.path=" + at("third/model"), "model.arch=null"})),
      {"model.path", at("third/model"), "another output"});
  EXPECT_TRUE(files_below(at("third")) == before);
  expect_user_error(run_ridge(train({"output=" + at("other"), "model.path=" + tiny_.model, "model.arch=null",
                                     "adapter.path=" + at("other/adapter")})),
                    {"adapter.path", at("other/adapter"), "another output"});
}

TEST_F(OutputFolder, PackKeepsItsTexts) {
  const std::string text = read_text(tiny_.text);
  const std::string same = folder_.path() + "/./tales.txt";
  expect_user_error(run_ridge({"pack", "--model", tiny_.tokenizer, "--text", tiny_.text, "--out", same}),
                    {"--out", "tales.txt", "another name"});
  EXPECT_TRUE(read_text(tiny_.text) == text);
}

TEST_F(OutputFolder, AConfigOfTheUserIsNotReplaced) {
  fs::create_directory(at("out"));
  fs::copy(tiny_.config, at("out/config.yaml"));
  const std::string written = read_text(at("out/config.yaml"));
  const Outcome done = must_run({"train", at("out/config.yaml"), "train.steps=2", "output=" + at("out")});
  EXPECT_NE(done.err.find(at("out/config.given.yaml")), std::string::npos) << done.err;
  EXPECT_EQ(read_text(at("out/config.given.yaml")), written);
  EXPECT_NE(read_text(at("out/config.yaml")), written);
  fs::remove_all(at("out"));
  must_run(train({}));
  const std::string resolved = read_text(at("out/config.yaml"));
  must_run({"train", at("out/config.yaml")});  // what a run has written begins it once more
  EXPECT_EQ(read_text(at("out/config.yaml")), resolved);
}

TEST_F(OutputFolder, AFinishedRunSaysSo) {
  const Arguments words = train({"train.checkpoint_every=2"});
  must_run(words);
  const auto before = files_below(at("out"));
  const Outcome again = must_run(words);
  EXPECT_NE(again.out.find("finished"), std::string::npos) << again.out;
  Arguments json = words;
  json.push_back("--json");
  for (const int ranks : {0, 2}) {
    const Json said = Json::parse(must_run(json, {.ranks = ranks}).out);
    EXPECT_EQ(said.at("steps"), 4);
    EXPECT_TRUE(said.at("loss").is_null());
    EXPECT_EQ(said.at("saved_to"), at("out/model"));
  }
  expect_user_error(run_ridge(train({"train.checkpoint_every=2", "train.steps=3"})),
                    {"train.steps is 3", "step-00000004", "4 steps"});
  EXPECT_EQ(read_text(at("out/metrics.jsonl")), before.at(at("out/metrics.jsonl")));
  fs::remove_all(at("out/model"));  // as after a run that was killed before it wrote it
  const Outcome saved = must_run(words);
  EXPECT_NE(saved.out.find("done before"), std::string::npos) << saved.out;
  EXPECT_EQ(saved.out.find("loss"), std::string::npos);
  EXPECT_EQ(read_text(at("out/model/config.json")), before.at(at("out/model/config.json")));
  EXPECT_EQ(read_text(at("out/model/model.safetensors")), before.at(at("out/model/model.safetensors")));
}

}  // namespace
}  // namespace ridge
