// `ridge bench decode`, `prefill` and `context`: the numbers are there and hang together.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/launch/run_program.h"

namespace ridge {
namespace {

using namespace test;
using Json = nlohmann::json;

const std::string kModel = data_file("models/llama3");

Json json_of(Arguments words) {
  words.push_back("--json");
  const Outcome outcome = must_run(words);
  EXPECT_EQ(lines_of(outcome.out).size(), 1u);
  return Json::parse(outcome.out, nullptr, false);
}

TEST(BenchDecode, BytesAndSharesHangTogether) {
  const Json info = json_of({"info", "--model", kModel});
  for (const std::string format : {"f32", "int8"}) {
    const Json d = json_of({"bench", "decode", "--model", kModel, "--dtype", "f32", "--kv-cache", format,
                            "--tokens", "60", "--prompt", "20"});
    if (format == "f32") {
      EXPECT_EQ(d.at("cache_bytes_per_token"), info.at("kv_bytes_per_token"));
    }
    const double bytes = d.at("weight_bytes"), each = d.at("cache_bytes_per_token");
    EXPECT_NEAR(d.at("bytes_per_token").get<double>(), bytes + each * (20 + 30.5), 1);
    EXPECT_EQ(d.at("cache_bytes"), each * (20 + 60 + 1));
    EXPECT_NEAR(d.at("limit_share").get<double>() * d.at("read_bytes_per_s").get<double>(),
                d.at("bytes_per_s"), 1e-6 * d.at("bytes_per_s").get<double>());
    EXPECT_NEAR(d.at("bytes_per_s").get<double>() / d.at("tokens_per_s").get<double>(),
                d.at("bytes_per_token"), 1);
    for (const char* key : {"token_seconds", "jitter_max_seconds", "peak_bytes"})
      EXPECT_GT(d.at(key), 0) << key;
    // A line through sixty noisy points may begin below zero.
    for (const char* key : {"base_seconds", "base_share"}) EXPECT_TRUE(d.at(key).is_number()) << key;
  }
}

TEST(BenchDecode, EverySequenceCounts) {
  const Json one = json_of({"bench", "decode", "--model", kModel, "--tokens", "30"});
  const Json four = json_of({"bench", "decode", "--model", kModel, "--tokens", "30", "--batch", "4"});
  EXPECT_EQ(four.at("cache_bytes"), 4 * one.at("cache_bytes").get<double>());
  EXPECT_EQ(four.at("weight_bytes"), one.at("weight_bytes"));
}

// Norms are whole on every rank, and widths are cut unevenly; two heads of keys and values are on two ranks,
// or each on two of four.
TEST(BenchDecode, RanksShareTheModel) {
  const Arguments words{"bench",    "decode", "--model",  data_file("models/bf16"),
                        "--dtype",  "f32",    "--tokens", "20",
                        "--device", "cpu",    "--json"};
  const Json one = json_of(words);
  EXPECT_EQ(one.at("tp"), 1);
  for (const int tp : {2, 4}) {
    Arguments over = words;
    over.insert(over.end(), {"--tp", std::to_string(tp)});
    const Outcome outcome = must_run(over, {.ranks = tp});
    ASSERT_EQ(lines_of(outcome.out).size(), 1u) << outcome.out;
    const Json shared = Json::parse(outcome.out);
    EXPECT_EQ(shared.at("tp"), tp);
    EXPECT_EQ(shared.at("recorded"), false);
    const double whole = one.at("weight_bytes");
    EXPECT_NEAR(tp * shared.at("weight_bytes").get<double>(), whole, 0.15 * whole);
    EXPECT_EQ(2 * shared.at("cache_bytes_per_token").get<double>(), one.at("cache_bytes_per_token"));
    const double rate = shared.at("bytes_per_s"), bytes = shared.at("bytes_per_token");
    EXPECT_NEAR(rate / shared.at("tokens_per_s").get<double>(), bytes, 1);
  }
  Arguments text{words.begin(), words.end() - 1};
  text.insert(text.end(), {"--tp", "2", "--quantize", "int8"});
  EXPECT_NE(must_run(text, {.ranks = 2}).out.find("over 2 ranks: bytes and shares are of what one rank"),
            std::string::npos);
}

TEST(BenchPrefill, EachLengthHasARow) {
  const Json p = json_of(
      {"bench", "prefill", "--model", kModel, "--dtype", "f32", "--lengths", "3", "50", "--runs", "2"});
  ASSERT_EQ(p.at("prompts").size(), 2u);
  for (const Json& row : p.at("prompts")) {
    const double seconds = row.at("seconds"), tokens = row.at("tokens");
    EXPECT_NEAR(row.at("tokens_per_s").get<double>() * seconds, tokens, 1e-6);
    EXPECT_NEAR(row.at("limit_share").get<double>() * p.at("matmul_flops_per_s").get<double>(),
                row.at("flops_per_s"), 1e-6 * row.at("flops_per_s").get<double>());
  }
  EXPECT_EQ(p.at("prompts").at(1).at("tokens"), 50);
}

// What meta says, within the pool's rounding, and in step with the memory.
TEST(BenchContext, IsWhatMetaSays) {
  double before = 0;
  for (const char* gib : {"0.005", "0.02"}) {
    const Json c =
        json_of({"bench", "context", "--model", kModel, "--prefill-chunk", "16", "--memory-gib", gib});
    const double context = c.at("context"), predicted = c.at("predicted_context");
    EXPECT_NEAR(context, predicted, 0.05 * predicted);
    EXPECT_LE(c.at("peak_bytes"), c.at("limit_bytes"));
    EXPECT_GT(context, 3 * before);
    before = context;
  }
}

TEST(BenchDecode, MistakesAreSaid) {
  const auto refused = [](const Arguments& more, const std::vector<std::string>& parts) {
    Arguments words{"bench"};
    words.insert(words.end(), more.begin(), more.end());
    words.insert(words.end(), {"--model", kModel});
    expect_user_error(run_ridge(words), parts);
  };
  refused({"decode", "--tokens", "1"}, {"--tokens", "1"});
  refused({"decode", "--prompt", "0"}, {"--prompt", "0"});
  refused({"decode", "--prompt", "200"}, {"200 tokens", "128"});
  refused({"decode", "--quantize", "int3"}, {"int3"});
  refused({"decode", "--quantize", "int4-g128"}, {"48"});
  refused({"decode", "--quantize-head"}, {"--quantize-head", "--quantize"});
  refused({"decode", "--kv-cache", "f8"}, {"f8", "fp8"});
  refused({"decode", "--tp", "0"}, {"--tp", "0"});
  refused({"decode", "--tp", "3"}, {"--tp 3", "1 were started"});
  refused({"decode", "--tp", "3", "--quantize", "int8", "--quantize-head"}, {"--quantize-head", "--tp"});
  refused({"prefill", "--tp", "2"}, {"--tp"});
  refused({"prefill", "--lengths", "3x"}, {"--lengths", "3x"});
  refused({"prefill", "--lengths", "500"}, {"500 tokens", "128"});
  refused({"context", "--memory-gib", "-1"}, {"--memory-gib", "-1"});
  refused({"context", "--memory-gib", "0.00001"}, {"GiB", "weights"});
}

}  // namespace
}  // namespace ridge
