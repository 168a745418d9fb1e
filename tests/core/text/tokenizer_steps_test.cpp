// Each normalizer, pre-tokenizer and decoder alone, against Hugging Face `tokenizers`.
#include <gtest/gtest.h>

#include "core/base/error.h"
#include "core/text/decoder.h"
#include "core/text/normalizer.h"
#include "core/text/pretokenizer.h"
#include "tests/core/text/tokenizer_fixtures.h"

namespace ridge {
namespace {

using nlohmann::json;
using test::read_fixture;
using test::visible;
using Strings = std::vector<std::string>;

TEST(TokenizerSteps, NormalizersMatchTheReference) {
  const json steps = read_fixture("steps.json");
  const auto texts = steps["texts"].get<Strings>();
  for (const json& step : steps["normalizers"]) {
    const auto normalizer = make_normalizer(JsonNode(step["step"], "steps.json"));
    for (std::size_t i = 0; i < texts.size(); ++i) {
      Segment segment{texts[i], true, 1 << 20};
      normalizer->apply(segment);
      EXPECT_EQ(segment.text, step["out"][i].get<std::string>())
          << step["step"] << " of " << visible(texts[i]);
    }
  }
}

TEST(TokenizerSteps, PreTokenizersMatchTheReference) {
  const json steps = read_fixture("steps.json");
  const auto texts = steps["texts"].get<Strings>();
  for (const json& step : steps["pre_tokenizers"]) {
    PreTokenizers pretokenizers(JsonNode(step["step"], "steps.json"));
    if (pretokenizers.ends_in_byte_level()) pretokenizers.map_bytes_here();
    for (std::size_t i = 0; i < texts.size(); ++i) {
      if (texts[i].empty()) continue;
      Strings pieces;
      pretokenizers.split({texts[i], true}, [&](Piece piece) { pieces.emplace_back(piece.text); });
      EXPECT_EQ(pieces, step["out"][i].get<Strings>()) << step["step"] << " of " << visible(texts[i]);
    }
  }
}

TEST(TokenizerSteps, DecodersMatchTheReference) {
  const json steps = read_fixture("steps.json");
  for (const json& step : steps["decoders"]) {
    const Decoder decoder(JsonNode(step["step"], "steps.json"));
    for (std::size_t i = 0; i < steps["tokens"].size(); ++i) {
      EXPECT_EQ(decoder.decode(steps["tokens"][i].get<Strings>(), BadBytes::kReplace),
                step["out"][i].get<std::string>())
          << step["step"] << " of " << steps["tokens"][i];
    }
  }
}

TEST(TokenizerSteps, StripCutsBothEndsOfShortTokens) {
  const json step = {{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 2}};
  const Decoder decoder(JsonNode(step, "x"));
  EXPECT_EQ(decoder.decode({"", " ", "   ", "  a   ", "b"}, BadBytes::kKeep), " a b");
}

TEST(TokenizerSteps, AStepThatExplodesTheTextIsRefused) {
  const json twice = {{"type", "Replace"}, {"pattern", {{"String", "a"}}}, {"content", "aaaaaaaa"}};
  json steps = json::array();
  for (int i = 0; i < 12; ++i) steps.push_back(twice);
  const json sequence = {{"type", "Sequence"}, {"normalizers", steps}};
  const auto normalizer = make_normalizer(JsonNode(sequence, "x"));
  Segment segment{"aaaa", true, 4096};
  EXPECT_THROW(normalizer->apply(segment), UserError);
}

TEST(TokenizerSteps, LongRunsOfMarksAreOrderedInTime) {
  std::string text = "a";
  for (int i = 0; i < 200'000; ++i) text += i % 2 ? "\u0301" : "\u0316";
  const std::string nfd = normal_form(text, NormalForm::kNfd);
  ASSERT_EQ(nfd.size(), text.size());
  EXPECT_EQ(nfd.substr(1, 2), "\u0316");
  EXPECT_EQ(nfd.substr(nfd.size() - 2), "\u0301");
  EXPECT_EQ(nfd.find("\u0301"), 1 + 2 * 100'000u);
}

}  // namespace
}  // namespace ridge
