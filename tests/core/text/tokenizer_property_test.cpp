// Properties: bytes survive, ids do not depend on how BPE is carried out, time is linear, threads may share.
#include <gtest/gtest.h>

#include <ctime>
#include <random>
#include <thread>

#include "core/base/error.h"
#include "core/text/bpe.h"
#include "core/text/utf8.h"
#include "tests/core/text/tokenizer_fixtures.h"

namespace ridge {
namespace {

using test::visible;
using Ids = std::vector<std::int32_t>;
using Random = std::mt19937;

// Byte-level files without a normalizer, and byte fallback without symbols that decode to something else.
constexpr const char* kExact[] = {"gpt2", "llama3", "tekken", "deepseek", "o200k", "falcon", "starcoder"};

std::string random_bytes(Random& random) {
  std::string out;
  for (auto n = random() % 60; n > 0; --n) out += static_cast<char>(random() % 256);
  return out;
}

char32_t random_character(Random& random) {
  switch (random() % 6) {
    case 0:
      return random() % 128;
    case 1:
      return U' ';
    case 2:
      return U"\n\r\t\u00A0\u3000\u0301\u200D\uFE0F'"[random() % 9];
    case 3:
      return U'a' + random() % 26;
    case 4:
      return 0x80 + random() % 0x3000;
    default:
      break;
  }
  const char32_t c = random() % 0x110000;
  return c >= 0xD800 && c < 0xE000 ? U'x' : c;
}

std::string random_text(Random& random) {
  std::string out;
  for (auto n = random() % 40; n > 0; --n) utf8::append(out, random_character(random));
  return out;
}

std::string mixed_text(Random& random) {
  std::string out = random_text(random);
  for (auto n = random() % 4; n > 0; --n)
    out.insert(random() % (out.size() + 1), 1, static_cast<char>(0x80 + random() % 128));
  return out;
}

TEST(TokenizerProperty, ByteLevelGivesEveryByteBack) {
  for (const char* family : kExact) {
    const Tokenizer tokenizer = test::load_fixture(family);
    Random random(11);
    for (int round = 0; round < 1500; ++round) {
      const std::string text = round % 3 == 0   ? random_bytes(random)
                               : round % 3 == 1 ? random_text(random)
                                                : mixed_text(random);
      const Ids ids = tokenizer.encode(text, false);
      ASSERT_EQ(tokenizer.decode(ids, false), text) << family << " " << visible(text);
      ASSERT_TRUE(utf8::is_valid(tokenizer.decode_utf8(ids, false)));
    }
    for (int byte = 0; byte < 256; ++byte) {
      const std::string one(1, static_cast<char>(byte));
      EXPECT_EQ(tokenizer.decode(tokenizer.encode(one, false), false), one);
      EXPECT_EQ(tokenizer.decode(tokenizer.encode("ab " + one + "c", false), false), "ab " + one + "c");
    }
  }
}

TEST(TokenizerProperty, ByteFallbackGivesEveryByteBack) {
  for (const char* family : {"llama2", "gemma"}) {
    const Tokenizer tokenizer = test::load_fixture(family);
    Random random(12);
    for (int round = 0; round < 1500; ++round) {
      const std::string text = round % 2 == 0 ? random_bytes(random) : mixed_text(random);
      if (text.find("\xE2\x96\x81") != std::string::npos) continue;  // U+2581 decodes to a space
      const Ids ids = tokenizer.encode(text, false);
      ASSERT_EQ(tokenizer.decode(ids, false), text) << family << " " << visible(text);
    }
  }
}

TEST(TokenizerProperty, InvalidBytesBecomeTheirByteTokens) {
  const Tokenizer tokenizer = test::load_fixture("llama2");
  const Ids ids = tokenizer.encode("a\xFF", false);
  ASSERT_EQ(tokenizer.id_to_token(ids.back()), "<0xFF>");
  const Tokenizer unknown = test::load_fixture("unknown");
  EXPECT_EQ(unknown.encode("\xFF", false), (Ids{*unknown.token_to_id("<unk>")}));
  EXPECT_TRUE(test::load_fixture("no_unknown").encode("\xFF", false).empty());
}

TEST(TokenizerProperty, StreamsOfRandomIdsEqualTheirDecoding) {
  for (const char* family :
       {"gpt2", "llama2", "gemma", "metaspace_first", "metaspace_never", "no_unknown", "qwen2"}) {
    const Tokenizer tokenizer = test::load_fixture(family);
    Random random(13);
    for (int round = 0; round < 800; ++round) {
      Ids ids;
      for (auto n = random() % 12; n > 0; --n)
        ids.push_back(static_cast<std::int32_t>(random() % static_cast<unsigned>(tokenizer.vocab_size())));
      DecodeStream stream(tokenizer);
      for (int again = 0; again < 2; ++again) {  // flush starts anew
        std::string streamed;
        for (const std::int32_t id : ids) streamed += stream.push(id);
        streamed += stream.flush();
        ASSERT_EQ(streamed, utf8::replace_invalid(tokenizer.decode(ids))) << family;
      }
    }
  }
}

TEST(TokenizerProperty, StreamsHoldBackPartsOfCharacters) {
  const Tokenizer tokenizer = test::load_fixture("llama2");
  DecodeStream stream(tokenizer);
  const auto push = [&](const char* token) { return stream.push(*tokenizer.token_to_id(token)); };
  EXPECT_EQ(push("\xE2\x96\x81"), "");  // the one space that is cut
  EXPECT_EQ(push("\xE2\x96\x81"), " ");
  EXPECT_EQ(push("<0xE2>"), "");
  EXPECT_EQ(push("<0x82>"), "");
  EXPECT_EQ(push("<0xAC>"), "\xE2\x82\xAC");
  EXPECT_EQ(push("<0xE2>"), "");
  EXPECT_EQ(push("a"),
            "\xEF\xBF\xBD"
            "a");
  EXPECT_EQ(push("<0xF0>"), "");
  EXPECT_EQ(stream.flush(), "\xEF\xBF\xBD");
  EXPECT_EQ(stream.flush(), "");
}

// Decoders that cannot give text out token by token: it comes with the flush.
TEST(TokenizerProperty, StreamsOfOtherDecodersEqualTheirDecoding) {
  const std::string fuse = R"({"type": "Fuse"})", bytes = R"({"type": "ByteFallback"})";
  const std::string replace = R"({"type": "Replace", "pattern": {"String": "aa"}, "content": "-"})";
  const std::string strip = R"({"type": "Strip", "content": "a", "start": 2, "stop": 1})";
  for (const std::string& steps :
       {fuse + "," + strip, fuse + "," + replace, bytes + "," + replace, strip, replace}) {
    const std::string file =
        R"({"decoder": {"type": "Sequence", "decoders": [)" + steps +
        R"(]}, "model": {"vocab": {"a": 0, "b": 1, "<0x61>": 2, "aa": 3}, "merges": []}})";
    const Tokenizer tokenizer = Tokenizer::from_json(file, "x");
    Random random(15);
    for (int round = 0; round < 300; ++round) {
      DecodeStream stream(tokenizer);
      Ids ids;
      std::string streamed;
      for (auto n = random() % 8; n > 0; --n) {
        ids.push_back(static_cast<std::int32_t>(random() % 4));
        streamed += stream.push(ids.back());
      }
      streamed += stream.flush();
      ASSERT_EQ(streamed, tokenizer.decode(ids)) << steps;
    }
  }
}

// The definition: always the pair of lowest rank, the leftmost of equals, one at a time.
Ids merge_by_definition(Ids symbols, const std::vector<Merge>& merges) {
  for (;;) {
    std::size_t best_rank = merges.size(), best = 0;
    for (std::size_t i = 0; i + 1 < symbols.size(); ++i) {
      for (std::size_t rank = 0; rank < best_rank; ++rank) {
        if (merges[rank].left != symbols[i] || merges[rank].right != symbols[i + 1]) continue;
        best_rank = rank;
        best = i;
      }
    }
    if (best_rank == merges.size()) return symbols;
    symbols[best] = merges[best_rank].result;
    symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(best) + 1);
  }
}

struct RandomModel {
  std::vector<std::string> tokens;
  std::vector<Merge> merges;
};

// Few letters and merges in random order: pairs overlap, ranks fall as well as rise, results come twice.
RandomModel random_model(Random& random, std::size_t letters) {
  RandomModel model;
  for (std::size_t i = 0; i < letters; ++i) model.tokens.emplace_back(1, static_cast<char>('a' + i));
  for (int i = 0; i < 25; ++i) {
    const auto left = random() % model.tokens.size(), right = random() % model.tokens.size();
    const std::string joined = model.tokens[left] + model.tokens[right];
    auto at = std::find(model.tokens.begin(), model.tokens.end(), joined);
    const auto result = static_cast<std::int32_t>(at - model.tokens.begin());
    if (at == model.tokens.end()) model.tokens.push_back(joined);
    model.merges.push_back({static_cast<std::int32_t>(left), static_cast<std::int32_t>(right), result});
  }
  std::shuffle(model.merges.begin(), model.merges.end(), random);
  std::vector<Merge> distinct;
  for (const Merge& merge : model.merges) {
    const auto same = [&](const Merge& other) {
      return other.left == merge.left && other.right == merge.right;
    };
    if (std::none_of(distinct.begin(), distinct.end(), same)) distinct.push_back(merge);
  }
  model.merges = distinct;
  return model;
}

TEST(TokenizerProperty, CutsHeapAndScanGiveTheDefinition) {
  Random random(14);
  for (int round = 0; round < 400; ++round) {
    const std::size_t letters = 2 + random() % 4;
    const RandomModel model = random_model(random, letters);
    Vocabulary vocabulary(model.tokens.size(), model.tokens.size());
    for (std::size_t id = 0; id < model.tokens.size(); ++id)
      ASSERT_TRUE(vocabulary.add(model.tokens[id], static_cast<std::int32_t>(id)));
    const Bpe bpe(std::move(vocabulary), model.merges, {});
    BpeScratch scratch;
    for (const std::size_t length : {1u, 2u, 7u, 40u, 48u, 49u, 63u, 64u, 65u, 300u}) {
      std::string text;
      Ids symbols;
      for (std::size_t i = 0; i < length; ++i) {
        const auto letter = static_cast<std::int32_t>(random() % letters);
        text += static_cast<char>('a' + letter);
        symbols.push_back(letter);
        if (random() % 8 == 0) text += '?';  // unknown, and dropped: its neighbours meet
      }
      Ids ids;
      bpe.encode_text(text, scratch, ids);
      ASSERT_EQ(ids, merge_by_definition(symbols, model.merges)) << text;
    }
  }
}

// Of this process: other programs do not count.
double processor_seconds() {
  timespec now{};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

double seconds_to_encode(const Tokenizer& tokenizer, const std::string& text) {
  double best = 1e9;
  for (int round = 0; round < 3; ++round) {
    const double begin = processor_seconds();
    tokenizer.encode(text, false);
    best = std::min(best, processor_seconds() - begin);
  }
  return best;
}

TEST(TokenizerProperty, TimeIsLinearInTheText) {
  const std::string units[] = {"a",    "ab",    "the thin thread ", " ", "\n", "1", "\xE6\xBC\xA2", "=",
                               "\xFF", "a\xFF", "\xCC\x81"};
  for (const char* family :
       {"gpt2", "llama3", "qwen2", "tekken", "llama2", "metaspace_first_whole", "unknown_fused"}) {
    const Tokenizer tokenizer = test::load_fixture(family);
    for (const std::string& unit : units) {
      std::string text;
      while (text.size() < 20'000) text += unit;
      std::string longer;
      for (int i = 0; i < 16; ++i) longer += text;
      // Quadratic would be 256 times; what is quick enough to drown in noise passes.
      const double once = std::max(seconds_to_encode(tokenizer, text), 1e-3);
      EXPECT_LT(seconds_to_encode(tokenizer, longer), 80 * once) << family << " " << visible(unit);
    }
  }
}

TEST(TokenizerProperty, ThreadsShareOneTokenizer) {
  const Tokenizer tokenizer = test::load_fixture("llama3");
  const auto texts = test::read_fixture("texts.json").get<std::vector<std::string>>();
  std::vector<Ids> want;
  for (const std::string& text : texts) want.push_back(tokenizer.encode(text, true));
  std::vector<std::thread> threads;
  std::atomic<int> wrong = 0;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, copy = tokenizer] {
      for (int round = 0; round < 5; ++round) {
        for (std::size_t i = 0; i < texts.size(); ++i) wrong += copy.encode(texts[i], true) != want[i];
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

TEST(TokenizerProperty, OrdinaryEncodingSpellsSpecialTokensOut) {
  const Tokenizer tokenizer = test::load_fixture("llama3");
  const std::string text = "a<|end_of_text|>b";
  const std::int32_t end = *tokenizer.token_to_id("<|end_of_text|>");
  const Ids found = tokenizer.encode(text, false), ordinary = tokenizer.encode_ordinary(text);
  EXPECT_EQ(std::count(found.begin(), found.end(), end), 1);
  EXPECT_EQ(std::count(ordinary.begin(), ordinary.end(), end), 0);
  EXPECT_EQ(tokenizer.decode(ordinary), text);
  EXPECT_EQ(tokenizer.decode(found), "ab");
  EXPECT_EQ(tokenizer.decode(found, false), text);
}

}  // namespace
}  // namespace ridge
