// `ridge generate`: the engine beside the plain path, many prompts, stop strings.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "core/text/tokenizer.h"
#include "tests/launch/run_program.h"

namespace ridge {
namespace {

using namespace test;
using Json = nlohmann::json;

class GenerateCommand : public SharedTest {
 protected:
  Arguments words(const Arguments& more) const {
    Arguments all{"generate", "--model", stories_};
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }
  Json json_of(Arguments more) const {
    more.push_back("--json");
    const Outcome outcome = must_run(words(more));
    EXPECT_EQ(lines_of(outcome.out).size(), 1u);
    return Json::parse(outcome.out, nullptr, false);
  }
  // Prompt and reply as one text: with the blank between them that a reply alone does not have.
  std::string shown_after(const std::string& prompt, const std::vector<std::int32_t>& reply) const {
    const Tokenizer tokenizer = Tokenizer::load(stories_);
    std::vector<std::int32_t> ids = tokenizer.encode(prompt, true);
    ids.insert(ids.end(), reply.begin(), reply.end());
    return tokenizer.decode_utf8(ids);
  }
  const Arguments prompt_{"--prompt", "Once upon a time", "--max-new-tokens", "60"};
  Arguments prompt_and(Arguments more) const {
    more.insert(more.begin(), prompt_.begin(), prompt_.end());
    return more;
  }
};

TEST_F(GenerateCommand, IsThePlainPath) {
  for (const Arguments& sampling :
       {Arguments{}, Arguments{"--temperature", "1", "--seed", "4"},
        Arguments{"--temperature", "1.5", "--min-p", "0.05", "--repetition-penalty", "1.3"}}) {
    Arguments plain = sampling, chunked = sampling;
    plain.push_back("--reference");
    chunked.insert(chunked.end(), {"--prefill-chunk", "2"});
    const Json wanted = json_of(prompt_and(plain));
    EXPECT_EQ(json_of(prompt_and(sampling)).at("ids"), wanted.at("ids"));
    EXPECT_EQ(json_of(prompt_and(chunked)).at("text"), wanted.at("text"));
  }
}

TEST_F(GenerateCommand, ManyPromptsAreEachAlone) {
  const std::string file = folder_ / "prompts.txt";
  write_text(file, "Once upon a time\nThe dog\r\nLily and Tom went to the");
  const Json all = json_of({"--prompts", file, "--max-new-tokens", "25", "--batch", "2"});
  const std::vector<std::string> prompts{"Once upon a time", "The dog", "Lily and Tom went to the"};
  ASSERT_EQ(all.size(), 3u);
  std::string text;
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    const Json one = json_of({"--prompt", prompts[i], "--max-new-tokens", "25"});
    EXPECT_EQ(all[i].at("ids"), one.at("ids")) << prompts[i];
    EXPECT_EQ(all[i].size(), 4u);
    text += shown_after(prompts[i], one.at("ids")) + "\n";
  }
  EXPECT_EQ(must_run(words({"--prompts", file, "--max-new-tokens", "25"})).out, text);
  const Json plain = json_of({"--prompts", file, "--max-new-tokens", "25", "--reference"});
  for (std::size_t i = 0; i < 3; ++i) EXPECT_EQ(plain[i].at("ids"), all[i].at("ids"));
}

TEST_F(GenerateCommand, EndsBeforeAStopString) {
  const Json alone = json_of(prompt_);
  const std::string whole = alone.at("text");
  const std::size_t at = whole.find("park");
  ASSERT_NE(at, std::string::npos) << whole;
  for (const char* path : {"--stream", "--reference"}) {
    const Json cut = json_of(prompt_and({"--stop", "rk. On", "--stop", "park", path}));
    EXPECT_EQ(cut.at("text"), whole.substr(0, at));
    EXPECT_LT(cut.at("ids").size(), 60u);
  }
  const Outcome shown = must_run(words(prompt_and({"--stop", "park"})));
  const std::string both = shown_after("Once upon a time", alone.at("ids"));
  EXPECT_EQ(shown.out, both.substr(0, both.find("park")) + "\n");
  const Outcome streamed = must_run(words(prompt_and({"--json", "--stream"})));
  EXPECT_NE(streamed.err.find("Once upon a time" + whole), std::string::npos) << streamed.err;
  EXPECT_EQ(must_run(words(prompt_and({"--json"}))).err.find("Once upon"), std::string::npos);
}

TEST_F(GenerateCommand, ACacheOfEightBitsTellsAStory) {
  const Json wanted = json_of(prompt_);
  EXPECT_EQ(json_of(prompt_and({"--kv-cache", "f32"})).at("ids"), wanted.at("ids"));
  for (const char* format : {"bf16", "fp8", "int8"}) {
    const Json ids = json_of(prompt_and({"--kv-cache", format})).at("ids");
    EXPECT_EQ(ids.at(0), wanted.at("ids").at(0)) << format;
    EXPECT_EQ(ids.size(), 60u);
  }
}

TEST_F(GenerateCommand, RanksShareTheModel) {
  const Json wanted = json_of(prompt_);
  const Outcome shared =
      must_run(words(prompt_and({"--tp", "2", "--json", "--device", "cpu"})), {.ranks = 2});
  EXPECT_EQ(Json::parse(shared.out, nullptr, false).at("ids"), wanted.at("ids"));
  const Arguments coded{"--quantize", "int8", "--json", "--device", "cpu"};
  Arguments coded_over_two = coded;
  coded_over_two.insert(coded_over_two.end(), {"--tp", "2"});
  EXPECT_EQ(Json::parse(must_run(words(prompt_and(coded_over_two)), {.ranks = 2}).out).at("ids"),
            Json::parse(must_run(words(prompt_and(coded))).out).at("ids"));
  const std::string adapter = data_file("models/stories260k_adapter");
  for (const Arguments& base : {Arguments{}, Arguments{"--quantize", "int8"}}) {
    Arguments one = prompt_and({"--adapter", adapter, "--json", "--device", "cpu"});
    one.insert(one.end(), base.begin(), base.end());
    Arguments two = one;
    two.insert(two.end(), {"--tp", "2"});
    const Json alone = Json::parse(must_run(words(one)).out).at("ids");
    EXPECT_EQ(Json::parse(must_run(words(two), {.ranks = 2}).out).at("ids"), alone);
    EXPECT_NE(alone, wanted.at("ids"));
  }
  expect_user_error(run_ridge(words(prompt_and({"--tp", "2"}))), {"--tp 2", "1 were started"});
  expect_user_error(run_ridge(words(prompt_and({"--tp", "0"}))), {"--tp is 0"});
  expect_user_error(run_ridge(words(prompt_and({"--tp", "2", "--reference"}))), {"--reference", "--tp 2"});
}

TEST_F(GenerateCommand, MistakesAreSaid) {
  const auto refused = [&](const Arguments& more, const std::vector<std::string>& parts) {
    expect_user_error(run_ridge(words(more)), parts);
  };
  write_text(folder_ / "empty", "");
  std::string text = "dog";
  for (int i = 0; i < 600; ++i) text += " dog";
  refused({}, {"--prompt", "--prompts"});
  refused({"--prompt", "a", "--prompts", folder_ / "empty"}, {"--prompt", "--prompts"});
  refused({"--prompts", folder_ / "empty"}, {"empty", "no line"});
  refused({"--prompts", folder_ / "absent"}, {"absent"});
  refused({"--prompt", "a", "--kv-cache", "int3"}, {"int3", "fp8"});
  refused({"--prompt", "a", "--kv-cache", "int8", "--reference"}, {"--reference", "int8"});
  refused({"--prompt", "a", "--min-p", "2"}, {"--min-p", "2"});
  refused({"--prompt", "a", "--repetition-penalty", "0"}, {"--repetition-penalty", "0"});
  refused({"--prompt", "a", "--stop", ""}, {"--stop"});
  refused({"--prompt", "a", "--batch", "0"}, {"--batch", "0"});
  refused({"--prompt", "a", "--prefill-chunk", "0"}, {"--prefill-chunk", "0"});
  refused({"--prompt", "a", "--max-new-tokens", "99999999999"}, {"KV cache", "100000000001"});
  refused({"--prompt", text}, {"tokens", "512"});
}

}  // namespace
}  // namespace ridge
