// Options beyond what a model or a machine can do are refused before work; what nobody got is no success.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "core/base/error.h"
#include "core/base/memory.h"
#include "tests/launch/train_helpers.h"

namespace ridge {
namespace {

using namespace test;
using Json = nlohmann::json;

const std::string kBase = data_file("models/llama3");  // 128 positions

TEST(Limits, OptionsBeyondThemAreRefused) {
  const struct {
    Arguments words;
    std::vector<std::string> parts;
  } cases[] = {
      {{"bench", "decode", "--prompt", "1000000000000"}, {"--prompt is 1000000000000", "1 to 128"}},
      {{"bench", "decode", "--prompt", "129"}, {"--prompt is 129", "1 to 128"}},
      {{"bench", "decode", "--tokens", "9223372036854775807"}, {"--tokens is 9223372036854775807"}},
      {{"bench", "decode", "--batch", "9223372036854775807"}, {"--batch is 9223372036854775807"}},
      {{"bench", "prefill", "--lengths", "100000000000"}, {"--lengths is 100000000000", "1 to 128"}},
      {{"bench", "prefill", "--lengths", "16,3000000000"}, {"--lengths is 3000000000", "1 to 128"}},
      {{"bench", "prefill", "--lengths", "16,,32"}, {"--lengths", "128,512"}},
      {{"bench", "train", "--lora-rank", "-1"}, {"--lora-rank is -1", "give 0"}},
      {{"bench", "train", "--batch", "0"}, {"--batch is 0", "give 1"}},
      {{"bench", "train", "--accumulate", "100000000000"}, {"--accumulate is 100000000000"}},
      {{"profile", "--lora-rank", "-1"}, {"--lora-rank is -1", "give 0"}},
  };
  for (const auto& [words, parts] : cases) {
    Arguments all = words;
    all.insert(all.end(), {"--model", kBase});
    expect_user_error(run_ridge(all), parts);
  }
  const Json done = Json::parse(
      must_run({"bench", "prefill", "--model", kBase, "--lengths", "16,64", "32", "--runs", "1", "--json"})
          .out);
  ASSERT_EQ(done.at("prompts").size(), 3u);
  EXPECT_EQ(done.at("prompts")[1].at("tokens"), 64);
}

TEST(Limits, ThreadsAreCountedInTheMessage) {
  Process process({RIDGE_PROGRAM, "info", "--model", kBase}, {.variables = {"RIDGE_THREADS=100000"}});
  expect_user_error(process.wait(), {"RIDGE_THREADS", "100000", "1 to 4096"});
}

TEST(Limits, OutOfMemorySpeaksToWhoeverAsked) {
  if (kSanitized) GTEST_SKIP() << "a sanitizer ends a program that asks for so much";
  try {
    const Storage block(Device::cpu, std::int64_t{1} << 60);
    FAIL() << "so much memory is there";
  } catch (const UserError& error) {
    for (const char* part : {"1099511627776.0 MiB", "train.micro_batch", "to generate", "quantize"})
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
  }
}

TEST(Limits, AResultThatNobodyGotIsAnError) {
  TemporaryFolder folder;
  const auto shell = [&](const std::string& line) {
    Process process({"sh", "-c", std::string(RIDGE_PROGRAM) + " " + line}, with_launcher_variables({}));
    return process.wait();
  };
  for (const char* where : {" >/dev/full", " >&-"}) {
    for (const std::string& line :
         {"info --model " + kBase, "--json info --model " + kBase, std::string("--help"),
          "sample-text --bytes 100 --out " + (folder / "text")})
      expect_user_error(shell(line + where), {"standard output"});
    expect_user_error(shell("info --model none" + std::string(where)), {"none/config.json"});
  }
  EXPECT_EQ(read_text(folder / "text").find("bytes"), std::string::npos) << "words for the user in a file";
  EXPECT_EQ(shell("info --model " + kBase + " 2>&-").exit_code, 0);
}

TEST(Limits, WhatGoesBeyondTheContextIsNoted) {
  TemporaryFolder folder;
  const TinyModel tiny(folder);  // 64 positions
  const std::string word = "max_position_embeddings";
  const auto train = [&](const char* length) {
    return must_run({"train", tiny.config, "train.steps=1", "data.sequence_length=" + std::string(length)})
        .err;
  };
  EXPECT_NE(train("65").find("data.sequence_length 65 is beyond the 64"), std::string::npos);
  EXPECT_EQ(train("64").find(word), std::string::npos);
  const auto generate = [&](const char* tokens) {
    return must_run({"generate", "--model", folder / "out/model", "--prompt", "a", "--max-new-tokens", tokens,
                     "--ignore-eos", "--prefill-chunk", "9999999999"})
        .err;
  };
  EXPECT_NE(generate("64").find("1 tokens and 64 new ones may go beyond the 64"), std::string::npos);
  EXPECT_EQ(generate("63").find(word), std::string::npos);
  expect_user_error(
      run_ridge({"generate", "--model", folder / "out/model", "--prompt", "a", "--temperature", "inf"}),
      {"--temperature is inf", "finite"});
}

}  // namespace
}  // namespace ridge
