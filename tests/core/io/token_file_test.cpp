#include "core/io/token_file.h"

#include <gtest/gtest.h>

#include <numeric>

#include "core/io/slab.h"
#include "tests/core/io/io_test_util.h"

namespace ridge {
namespace {

using test::expect_contains;
using test::message_of;
using test::TemporaryFolder;
using Tokens = std::vector<std::int32_t>;

Tokens random_tokens(std::size_t n, std::int32_t vocab, std::mt19937& rng) {
  Tokens tokens(n);
  for (std::int32_t& id : tokens) id = static_cast<std::int32_t>(rng() % static_cast<std::uint32_t>(vocab));
  return tokens;
}

void write(const std::string& path, const Tokens& tokens, std::int64_t vocab) {
  TokenFileWriter writer(path, vocab, "hash");
  writer.append(tokens);
  writer.finish();
}

TEST(TokenFile, RandomAndSequentialReadsGiveWhatWasAppended) {
  TemporaryFolder folder;
  std::mt19937 rng(3);
  const Tokens all = random_tokens(1'300'007, 50'257, rng);  // several chunks, buffers and read-aheads
  const std::string sources[] = {"a b.txt", "c.txt"};
  TokenFileWriter writer(folder / "t.h5", 50'257, "abc123", sources);
  for (std::size_t i = 0; i < all.size();) {
    const std::size_t n = std::min<std::size_t>(rng() % 200'000, all.size() - i);
    writer.append(std::span(all).subspan(i, n));
    i += n;
  }
  EXPECT_FALSE(std::filesystem::exists(folder / "t.h5"));
  writer.finish();
  EXPECT_EQ(folder.names(), std::vector<std::string>{"t.h5"});

  TokenFile file = TokenFile::open(folder / "t.h5");
  ASSERT_EQ(file.size(), static_cast<std::int64_t>(all.size()));
  EXPECT_EQ(file.vocab_size(), 50'257);
  EXPECT_EQ(file.tokenizer_hash(), "abc123");
  EXPECT_EQ(file.sources(), (std::vector<std::string>{"a b.txt", "c.txt"}));
  for (std::size_t i = 0; i < all.size();) {
    Tokens part(std::min<std::size_t>(1 + rng() % 3000, all.size() - i));
    file.read(static_cast<std::int64_t>(i), part);
    ASSERT_TRUE(std::ranges::equal(part, std::span(all).subspan(i, part.size()))) << i;
    i += part.size();
  }
  for (int round = 0; round < 300; ++round) {
    Tokens part(rng() % (round % 10 == 0 ? 200'000 : 2'000));
    const std::size_t at = rng() % (all.size() - part.size() + 1);
    file.read(static_cast<std::int64_t>(at), part);
    ASSERT_TRUE(std::ranges::equal(part, std::span(all).subspan(at, part.size()))) << at;
  }
}

TEST(TokenFile, OverlappingSequentialSamplesAreRight) {
  TemporaryFolder folder;
  Tokens all(100'000);
  std::iota(all.begin(), all.end(), 0);
  write(folder / "t.h5", all, 100'000);
  TokenFile file = TokenFile::open(folder / "t.h5");
  for (std::int64_t k = 0; (k + 1) * 128 < file.size(); ++k) {  // sample k is tokens [kT, kT + T], T = 128
    Tokens sample(129);
    file.read(k * 128, sample);
    ASSERT_EQ(sample.front(), k * 128);
    ASSERT_EQ(sample.back(), k * 128 + 128);
  }
}

TEST(TokenFile, MayBeEmpty) {
  TemporaryFolder folder;
  write(folder / "t.h5", {}, 10);
  TokenFile file = TokenFile::open(folder / "t.h5");
  EXPECT_EQ(file.size(), 0);
  EXPECT_TRUE(file.sources().empty());
  file.read(0, {});
  Tokens one(1);
  expect_contains(message_of<Error>([&] { file.read(0, one); }), "has 0 tokens: 1 from 0 on are not in it");
}

TEST(TokenFile, ReadsOutsideAreErrors) {
  TemporaryFolder folder;
  write(folder / "t.h5", {1, 2, 3}, 10);
  TokenFile file = TokenFile::open(folder / "t.h5");
  Tokens two(2);
  expect_contains(message_of<Error>([&] { file.read(2, two); }), "has 3 tokens: 2 from 2 on");
  expect_contains(message_of<Error>([&] { file.read(-1, two); }), "2 from -1 on");
}

TEST(TokenFile, IdsOutsideTheVocabularyAreNamed) {
  TemporaryFolder folder;
  TokenFileWriter writer(folder / "t.h5", 100, "h");
  const Tokens good{0, 99}, large{5, 100}, negative{-1};
  writer.append(good);
  expect_contains(message_of([&] { writer.append(large); }),
                  "token 3 is id 100, but the vocabulary has 100 ids");
  expect_contains(message_of([&] { writer.append(negative); }), "token 2 is id -1");
  writer.finish();
  {
    Hdf5File file = Hdf5File::open(folder / "t.h5", Hdf5File::Access::read_write);
    file.set_attribute("/", "vocab_size", std::int64_t{99});
  }
  TokenFile file = TokenFile::open(folder / "t.h5");
  Tokens two(2);
  expect_contains(message_of([&] { file.read(0, two); }), "token 1 is id 99, but the vocabulary has 99 ids");
  expect_contains(message_of([&] { TokenFileWriter none(folder / "u.h5", 0, "h"); }),
                  "a vocabulary of 0 ids");
  EXPECT_EQ(folder.names(), std::vector<std::string>{"t.h5"});
}

TEST(TokenFile, AnUnfinishedOneDoesNotAppear) {
  TemporaryFolder folder;
  {
    TokenFileWriter writer(folder / "t.h5", 10, "h");
    writer.append(Tokens{1, 2, 3});
  }
  EXPECT_TRUE(folder.names().empty());
}

// Changes a good token file by `change` and expects opening to say `part`.
template <class F>
void expect_rejected(F change, std::string_view part) {
  TemporaryFolder folder;
  write(folder / "t.h5", {1, 2, 3}, 10);
  {
    Hdf5File file = Hdf5File::open(folder / "t.h5", Hdf5File::Access::read_write);
    change(file);
  }
  const std::string message = message_of([&] { TokenFile::open(folder / "t.h5"); });
  expect_contains(message, "t.h5'");
  expect_contains(message, part);
}

TEST(TokenFile, OtherFilesAreRejected) {
  expect_rejected([](Hdf5File& f) { f.set_attribute("/", "ridge_format", "checkpoint"); },
                  "ridge_format is 'checkpoint'");
  expect_rejected([](Hdf5File& f) { f.set_attribute("/", "version", std::int64_t{2}); },
                  "has version 2; this program reads version 1");
  expect_rejected([](Hdf5File& f) { f.set_attribute("/", "version", "x"); },
                  "'version' of '/' is not one whole number");
  expect_rejected([](Hdf5File& f) { f.set_attribute("/", "count", std::int64_t{4}); },
                  "says that it has 4 tokens, but holds 3");
  expect_rejected([](Hdf5File& f) { f.set_attribute("/", "vocab_size", std::int64_t{-5}); },
                  "vocab_size -5 is not between");
  TemporaryFolder folder;
  Hdf5File::create(folder / "e.h5").close();
  expect_contains(message_of([&] { TokenFile::open(folder / "e.h5"); }),
                  "is not a token file: it has no attribute ridge_format");
  test::write_text(folder / "t.txt", "tokens");
  expect_contains(message_of([&] { TokenFile::open(folder / "t.txt"); }), "is not an HDF5 file");
}

TEST(TokenFile, TheWrongElementTypeIsNamed) {
  TemporaryFolder folder;
  Hdf5File file = Hdf5File::create(folder / "t.h5");
  file.create_dataset("tokens", DType::i64, Extents{2, 3});
  file.set_attribute("/", "ridge_format", "tokens");
  file.set_attribute("/", "version", std::int64_t{1});
  file.close();
  expect_contains(message_of([&] { TokenFile::open(folder / "t.h5"); }),
                  "its tokens are i64 [2, 3], not a list of i32");
}

TEST(TokenFile, AFullDiskKeepsTheOldFile) {
  TemporaryFolder folder;
  write(folder / "t.h5", {1, 2, 3}, 10);
  const std::string message = test::message_on_full_disk(100'000, [&] {
    TokenFileWriter writer(folder / "t.h5", 10, "h");
    for (int i = 0; i < 100; ++i) writer.append(Tokens(50'000, 7));
    writer.finish();
  });
  expect_contains(message, "File too large");
  EXPECT_EQ(TokenFile::open(folder / "t.h5").size(), 3);
}

}  // namespace
}  // namespace ridge
