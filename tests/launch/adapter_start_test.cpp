// Runs that start from an adapter, and the base that adapters are trained on.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/launch/train_helpers.h"

namespace ridge {
namespace {

using namespace test;
using Json = nlohmann::json;
namespace fs = std::filesystem;

class AdapterStart : public testing::Test {
 protected:
  AdapterStart() { tiny_.save(); }

  std::string at(const std::string& name) const { return folder_ / name; }
  Arguments train(const std::string& output, const Arguments& more) const {
    Arguments words{"train",
                    tiny_.config,
                    "output=" + at(output),
                    "train.steps=3",
                    "model.path=" + tiny_.model,
                    "model.arch=null",
                    "train.log_every=1"};
    words.insert(words.end(), more.begin(), more.end());
    return words;
  }
  static Json config_of(const std::string& adapter) {
    return Json::parse(read_text(adapter + "/adapter_config.json"));
  }
  // The same model with other weights.
  void save_scaled(double factor) const {
    const auto loaded = models::load_model(tiny_.model, DType::f32, models::LoadMode::train);
    for (const nn::Parameter& p : loaded.model->parameters()) {
      for (float& x : p.value->span<float>()) x *= static_cast<float>(factor);
    }
    models::save_model(*loaded.model, tiny_.model, DType::f32, tiny_.tokenizer);
  }

  TemporaryFolder folder_;
  TinyModel tiny_{folder_};
  const Arguments lora_{"lora.rank=4", "lora.alpha=12", "lora.targets=[q_proj, o_proj]"};
};

TEST_F(AdapterStart, AllLinearIsTheLayersThatPeftNames) {
  must_run(train("first", {"lora.rank=4",
                           "lora.targets=[q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj]"}));
  must_run(train("second", {"adapter.path=" + at("first/adapter"), "lora.targets=[all-linear]"}));
}

TEST_F(AdapterStart, WhatLoraLeavesOpenIsAsTheAdapterHasIt) {
  must_run(train("first", lora_));
  const std::string adapter = at("first/adapter"), from = "adapter.path=" + adapter;
  must_run(train("plain", {from}));
  must_run(train("named", {from, "lora.rank=4", "lora.targets=[o_proj, q_proj]", "lora.alpha=12"}));
  must_run(train("open", {from, "lora.use_rslora=false"}));
  for (const char* file : {"adapter_model.safetensors", "adapter_config.json"}) {
    const std::string wanted = read_text(at("plain/adapter/") + file);
    EXPECT_TRUE(read_text(at("named/adapter/") + file) == wanted) << file;
    EXPECT_TRUE(read_text(at("open/adapter/") + file) == wanted) << file;
  }
  EXPECT_FALSE(read_text(at("plain/adapter/adapter_model.safetensors")) ==
               read_text(adapter + "/adapter_model.safetensors"));
  const struct {
    const char* field;
    std::vector<std::string> parts;
  } cases[] = {{"lora.rank=8", {"lora.rank is 8", "has 4"}},
               {"lora.alpha=16", {"lora.alpha is 16", "has 12"}},
               {"lora.use_rslora=true", {"lora.use_rslora is true", "has false"}},
               {"lora.targets=[all-linear]", {"lora.targets is [down_proj, gate_proj", "[o_proj, q_proj]"}},
               {"lora.target_pattern=.*", {"lora.target_pattern is .*"}},
               {"lora.exclude=[k_proj]", {"lora.exclude is [k_proj]", "has []"}},
               {"lora.rank_pattern={q_proj: 2}", {"lora.rank_pattern is {q_proj: 2}", "has {}"}}};
  for (const auto& [field, parts] : cases) {
    std::vector<std::string> wanted = parts;
    wanted.push_back(adapter);
    expect_user_error(run_ridge(train("other", {from, field})), wanted);
  }
  EXPECT_FALSE(fs::exists(at("other")));
}

// Dropout is of the training, not of the adapter.
TEST_F(AdapterStart, DropoutIsTheRunsOwn) {
  must_run(train("first", lora_));
  const std::string from = "adapter.path=" + at("first/adapter");
  const Arguments checkpoints{from, "train.checkpoint_every=1"},
      dropped{from, "train.checkpoint_every=1", "lora.dropout=0.5"};
  must_run(train("plain", checkpoints));
  must_run(train("dropped", dropped));
  EXPECT_FALSE(read_text(at("plain/adapter/adapter_model.safetensors")) ==
               read_text(at("dropped/adapter/adapter_model.safetensors")));
  EXPECT_EQ(config_of(at("plain/adapter")).at("lora_dropout"), 0);
  EXPECT_EQ(config_of(at("dropped/adapter")).at("lora_dropout"), 0.5);
  must_run({"checkpoint", "convert", at("dropped"), "--out", at("converted")});
  EXPECT_EQ(config_of(at("converted")), config_of(at("dropped/adapter")));
  Arguments more = dropped;
  more.push_back("train.steps=4");
  const Outcome resumed = must_run(train("dropped", more));
  EXPECT_NE(resumed.err.find("resumed after step 2"), std::string::npos) << resumed.err;
  more.back() = "train.steps=5";
  more[2] = "lora.dropout=0.25";
  expect_user_error(run_ridge(train("dropped", more)), {"lora.dropout", "0.5", "0.25"});
}

TEST_F(AdapterStart, ResumingOnAnotherBaseIsRefused) {
  Arguments words = train("out", lora_);
  words.push_back("train.checkpoint_every=1");
  must_run(words);
  words.push_back("train.steps=4");
  must_run(words);  // the base as it was
  words.back() = "train.steps=5";
  const std::string config = read_text(tiny_.model + "/config.json");
  save_scaled(1.5);
  for (const int ranks : {0, 2}) {
    const Outcome refused = run_ridge(words, {.ranks = ranks});
    EXPECT_EQ(refused.exit_code, 1);
    for (const char* part : {"step-00000004", "model.path", "fingerprint", "another output"})
      EXPECT_NE(refused.err.find(part), std::string::npos) << refused.err;
  }
  tiny_.save();
  must_run(words);
  words.back() = "train.steps=6";
  write_text(tiny_.model + "/config.json", "\n" + config);
  EXPECT_EQ(run_ridge(words).exit_code, 1);
}

TEST_F(AdapterStart, AnotherBasesNameIsNoted) {
  must_run(train("out", lora_));
  const std::string adapter = at("out/adapter"), word = "base_model_name_or_path";
  fs::create_directory(at("sub"));
  fs::copy(tiny_.model, at("sub/base"));
  fs::copy(tiny_.model, at("renamed"));
  const auto said = [&](const std::string& model) {
    const std::string err = must_run({"generate", "--model", model, "--adapter", adapter, "--prompt", "a",
                                      "--max-new-tokens", "2"})
                                .err;
    return err.find(word) != std::string::npos;
  };
  EXPECT_FALSE(said(tiny_.model));
  EXPECT_FALSE(said(at("sub/base/")));  // the name counts, not where it lies
  EXPECT_TRUE(said(at("renamed")));
  const Outcome merged =
      must_run({"merge", "--model", at("renamed"), "--adapter", adapter, "--out", at("merged")});
  EXPECT_NE(merged.err.find(tiny_.model), std::string::npos) << merged.err;
  Arguments words = train("again", {"adapter.path=" + adapter});
  EXPECT_EQ(must_run(words).err.find(word), std::string::npos);
  words.push_back("model.path=" + at("renamed"));
  words.push_back("output=" + at("third"));
  EXPECT_NE(must_run(words).err.find(word), std::string::npos);
}

}  // namespace
}  // namespace ridge
