// The English that the program makes itself: sizes, seeds, and the same bytes everywhere.
#include "launch/sample_text.h"

#include <gtest/gtest.h>

#include <set>

#include "core/io/checksum.h"
#include "tests/launch/run_program.h"

namespace ridge {
namespace {

using namespace test;

TEST(SampleText, HasAboutTheSizeAndWholeParagraphs) {
  for (const SampleKind kind : {SampleKind::tales, SampleKind::notes}) {
    for (const std::int64_t bytes : {1, 1000, 100000}) {
      const std::string text = sample_text(kind, bytes, 4);
      EXPECT_GE(static_cast<std::int64_t>(text.size()), bytes);
      EXPECT_LT(static_cast<std::int64_t>(text.size()), bytes + 2000);
      EXPECT_TRUE(text.ends_with("\n\n"));
    }
  }
}

TEST(SampleText, ALongerOneBeginsAsAShorterOne) {
  const std::string text = sample_text(SampleKind::notes, 5000, 1);
  EXPECT_EQ(sample_text(SampleKind::notes, 20000, 1).substr(0, text.size()), text);
}

TEST(SampleText, SeedsAndKindsDiffer) {
  std::set<std::string> texts;
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    texts.insert(sample_text(SampleKind::tales, 2000, seed));
    texts.insert(sample_text(SampleKind::notes, 2000, seed));
  }
  EXPECT_EQ(texts.size(), 40u);
}

TEST(SampleText, IsReadableAscii) {
  for (const SampleKind kind : {SampleKind::tales, SampleKind::notes}) {
    for (const char c : sample_text(kind, 50000, 2)) {
      ASSERT_TRUE(c == '\n' || (c >= 0x20 && c < 0x7F)) << static_cast<int>(c);
    }
  }
}

// A language model can learn it: few words, used again and again.
TEST(SampleText, HasASmallVocabulary) {
  for (const SampleKind kind : {SampleKind::tales, SampleKind::notes}) {
    std::istringstream in(sample_text(kind, 200000, 3));
    std::set<std::string> words;
    for (std::string word; in >> word;) words.insert(word);
    EXPECT_GT(words.size(), 60u);
    EXPECT_LT(words.size(), 1500u);
  }
}

TEST(SampleText, TheProgramWritesIt) {
  const TemporaryFolder folder;
  const std::string out = folder / "text.txt";
  must_run({"sample-text", "--kind", "notes", "--bytes", "3000", "--seed", "8", "--out", out});
  EXPECT_EQ(read_text(out), sample_text(SampleKind::notes, 3000, 8));
  must_run({"train-tokenizer", "--text", out, "--vocab-size", "270", "--out", folder / "tokenizer"});
  must_run({"train-tokenizer", "--text", out, "--vocab-size", "270", "--out", folder / "again"});
  EXPECT_EQ(read_text(folder / "tokenizer/tokenizer.json"), read_text(folder / "again/tokenizer.json"));
  expect_user_error(
      run_ridge({"train-tokenizer", "--text", out, "--vocab-size", "257", "--out", folder / "bad"}),
      {"--vocab-size", "257", "258"});
  EXPECT_FALSE(std::filesystem::exists(folder / "bad"));
}

TEST(SampleText, IsTheSameOnEveryMachine) {
  const auto checksum = [](SampleKind kind) {
    return checksum_text(xxh3_64(std::as_bytes(std::span<const char>(sample_text(kind, 20000, 0)))));
  };
  EXPECT_EQ(checksum(SampleKind::tales), "0c489a2a70800629");
  EXPECT_EQ(checksum(SampleKind::notes), "e512e9787a7886da");
}

}  // namespace
}  // namespace ridge
