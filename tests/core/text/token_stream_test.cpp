#include "core/text/token_stream.h"

#include <gtest/gtest.h>

#include <numeric>

#include "core/io/token_file.h"
#include "tests/core/io/io_test_util.h"
#include "tests/core/text/tokenizer_fixtures.h"

namespace ridge {
namespace {

using test::expect_contains;
using test::message_of;
using test::TemporaryFolder;

const Tokenizer& gpt2() {
  static const Tokenizer tokenizer = test::load_fixture("gpt2");
  return tokenizer;
}

std::vector<std::int32_t> all_of(TokenStream& stream) {
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(stream.size()));
  stream.read(0, tokens);
  return tokens;
}

void pack(const std::string& path, const std::vector<std::int32_t>& tokens, const Tokenizer& tokenizer,
          std::int64_t vocab_size) {
  TokenFileWriter writer(path, vocab_size, tokenizer_fingerprint(tokenizer));
  writer.append(tokens);
  writer.finish();
}

TEST(MemoryStream, ReadsAnyPiece) {
  std::vector<std::int32_t> tokens(100);
  std::iota(tokens.begin(), tokens.end(), 5);
  const auto stream = memory_stream(tokens);
  EXPECT_EQ(stream->size(), 100);
  EXPECT_EQ(all_of(*stream), tokens);
  std::vector<std::int32_t> piece(7);
  stream->read(93, piece);
  EXPECT_EQ(piece.front(), 98);
  EXPECT_EQ(piece.back(), 104);
  stream->read(100, std::span<std::int32_t>());
}

TEST(MemoryStream, OutsideIsAnError) {
  const auto stream = memory_stream({1, 2, 3});
  std::vector<std::int32_t> two(2);
  EXPECT_THROW(stream->read(2, two), Error);
  EXPECT_THROW(stream->read(-1, two), Error);
  EXPECT_THROW(stream->read(4, two), Error);
}

TEST(OpenTokenStream, ATextIsItsIdsWithoutSpecialOnes) {
  const TemporaryFolder folder;
  const std::string text = "The quick brown fox.\nJumps over 13 dogs!";
  test::write_text(folder / "a.txt", text);
  const auto stream = open_token_stream({folder / "a.txt"}, gpt2(), gpt2().vocab_size());
  EXPECT_EQ(all_of(*stream), gpt2().encode(text, false));
}

TEST(OpenTokenStream, FilesFollowEachOtherAcrossTheirBorders) {
  const TemporaryFolder folder;
  test::write_text(folder / "a.txt", "one two three");
  test::write_text(folder / "c.txt", "six");
  const std::vector<std::int32_t> middle{3, 1, 4, 1, 5, 9, 2, 6};
  pack(folder / "b.h5", middle, gpt2(), gpt2().vocab_size());
  std::vector<std::int32_t> want = gpt2().encode("one two three", false);
  want.insert(want.end(), middle.begin(), middle.end());
  const auto last = gpt2().encode("six", false);
  want.insert(want.end(), last.begin(), last.end());
  const auto stream =
      open_token_stream({folder / "a.txt", folder / "b.h5", folder / "c.txt"}, gpt2(), gpt2().vocab_size());
  ASSERT_EQ(stream->size(), static_cast<std::int64_t>(want.size()));
  for (std::size_t begin = 0; begin < want.size(); ++begin) {
    for (std::size_t end = begin; end <= want.size(); ++end) {
      std::vector<std::int32_t> piece(end - begin);
      stream->read(static_cast<std::int64_t>(begin), piece);
      ASSERT_TRUE(std::equal(piece.begin(), piece.end(), want.begin() + static_cast<std::ptrdiff_t>(begin)))
          << begin << " to " << end;
    }
  }
  std::vector<std::int32_t> two(2);
  EXPECT_THROW(stream->read(stream->size() - 1, two), Error);
  EXPECT_THROW(stream->read(stream->size() + 5, two), Error);
  EXPECT_THROW(stream->read(-1, two), Error);
}

TEST(OpenTokenStream, WhatIsMissingOrEmptyIsNamed) {
  const TemporaryFolder folder;
  const std::int64_t vocab = gpt2().vocab_size();
  const auto open = [&](const std::string& path) {
    return message_of([&] { open_token_stream({path}, gpt2(), vocab); });
  };
  expect_contains(open(folder / "no.txt"), folder / "no.txt");
  test::write_text(folder / "empty.txt", "");
  expect_contains(open(folder / "empty.txt"), folder / "empty.txt");
  expect_contains(open(folder / "empty.txt"), "empty");
  expect_contains(open(folder.path()), folder.path());
  expect_contains(message_of([&] { open_token_stream({}, gpt2(), vocab); }), "no data files");
}

TEST(OpenTokenStream, AFileOfALargerVocabularyIsNamedWithBoth) {
  const TemporaryFolder folder;
  pack(folder / "big.h5", {1, 2, 3}, gpt2(), 100000);
  const std::string message = message_of([&] { open_token_stream({folder / "big.h5"}, gpt2(), 500); });
  for (const char* part : {"big.h5", "100000", "500"}) expect_contains(message, part);
}

TEST(OpenTokenStream, AFileOfAnotherTokenizerIsNamed) {
  const TemporaryFolder folder;
  const Tokenizer other = test::load_fixture("qwen2");
  pack(folder / "other.h5", {1, 2, 3}, other, 100);
  const std::string message = message_of([&] { open_token_stream({folder / "other.h5"}, gpt2(), 1000000); });
  for (const std::string& part :
       {folder / "other.h5", tokenizer_fingerprint(other), tokenizer_fingerprint(gpt2())})
    expect_contains(message, part);
}

TEST(OpenTokenStream, AFileThatOnlyBeginsAsHdf5IsNamed) {
  const TemporaryFolder folder;
  test::write_text(folder / "bad.h5", "\x89HDF\r\n\x1a\nand then nothing");
  expect_contains(message_of([&] { open_token_stream({folder / "bad.h5"}, gpt2(), 1000000); }), "bad.h5");
}

TEST(EncodeFile, AnIdOutsideTheEmbeddingIsNamed) {
  const TemporaryFolder folder;
  test::write_text(folder / "a.txt", "The quick brown fox");
  const auto ids = gpt2().encode("The quick brown fox", false);
  const std::int32_t most = *std::max_element(ids.begin(), ids.end());
  EXPECT_EQ(encode_file(folder / "a.txt", gpt2(), false, most + 1), ids);
  const std::string message = message_of([&] { encode_file(folder / "a.txt", gpt2(), false, most); });
  for (const std::string& part : {std::string("a.txt"), std::to_string(most)}) expect_contains(message, part);
}

TEST(EncodeFile, SpecialTokensWhereAskedFor) {
  const TemporaryFolder folder;
  const Tokenizer llama = test::load_fixture("llama2");
  test::write_text(folder / "a.txt", "Hello");
  EXPECT_EQ(encode_file(folder / "a.txt", llama, true, 1 << 20), llama.encode("Hello", true));
  EXPECT_NE(encode_file(folder / "a.txt", llama, false, 1 << 20),
            encode_file(folder / "a.txt", llama, true, 1 << 20));
}

TEST(Fingerprint, TellsTokenizersApart) {
  std::vector<std::string> prints;
  for (const char* name : {"gpt2", "llama2", "llama3", "qwen2"})
    prints.push_back(tokenizer_fingerprint(test::load_fixture(name)));
  for (std::size_t i = 0; i < prints.size(); ++i) {
    for (std::size_t j = 0; j < i; ++j) EXPECT_NE(prints[i], prints[j]);
  }
  EXPECT_EQ(tokenizer_fingerprint(test::load_fixture("gpt2")), prints[0]);
}

}  // namespace
}  // namespace ridge
