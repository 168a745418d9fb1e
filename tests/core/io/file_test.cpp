#include "core/io/file.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <thread>

#include "tests/core/io/io_test_util.h"

namespace ridge {
namespace {

namespace fs = std::filesystem;
using test::expect_contains;
using test::message_of;
using test::message_on_full_disk;
using test::TemporaryFolder;

std::string as_text(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

TEST(MappedFile, ShowsTheBytes) {
  TemporaryFolder folder;
  std::mt19937 rng(1);
  const auto bytes = test::random_bytes(10'007, rng);
  test::write_text(folder / "a", as_text(bytes));
  MappedFile file = MappedFile::open(folder / "a");
  EXPECT_EQ(as_text(file.bytes()), as_text(bytes));
  prefetch(file.bytes().subspan(4'099));
  const MappedFile moved = std::move(file);
  EXPECT_EQ(as_text(moved.bytes()), as_text(bytes));
  EXPECT_TRUE(file.bytes().empty());
}

TEST(MappedFile, EmptyFileHasNoBytes) {
  TemporaryFolder folder;
  test::write_text(folder / "empty", "");
  EXPECT_TRUE(MappedFile::open(folder / "empty").bytes().empty());
}

TEST(MappedFile, NamesPathAndReason) {
  TemporaryFolder folder;
  const std::string missing = message_of([&] { MappedFile::open(folder / "none"); });
  expect_contains(missing, folder / "none");
  expect_contains(missing, "No such file or directory");
  expect_contains(message_of([&] { MappedFile::open(folder.path()); }), "is a folder");
  ASSERT_EQ(::mkfifo((folder / "fifo").c_str(), 0600), 0);
  expect_contains(message_of([&] { MappedFile::open(folder / "fifo"); }), "not a regular file");
}

TEST(ReadTextFile, ReadsUpToTheBound) {
  TemporaryFolder folder;
  test::write_text(folder / "t", std::string("a\0b\n", 4));
  EXPECT_EQ(read_text_file(folder / "t", 4), std::string("a\0b\n", 4));
  const std::string message = message_of([&] { read_text_file(folder / "t", 3); });
  expect_contains(message, "has 4 bytes; at most 3");
  expect_contains(message_of([&] { read_text_file(folder / "x", 3); }), "No such file");
}

TEST(AtomicFile, ReplacesTheOldFileOnlyAtCommit) {
  TemporaryFolder folder;
  test::write_text(folder / "f", "old");
  {
    AtomicFile file(folder / "f");
    file.write("new ");
    file.write("text");
    EXPECT_EQ(test::read_text(folder / "f"), "old");
    file.commit();
  }
  EXPECT_EQ(test::read_text(folder / "f"), "new text");
  EXPECT_EQ(folder.names(), std::vector<std::string>{"f"});
}

TEST(AtomicFile, LeavesNothingWhenNotCommitted) {
  TemporaryFolder folder;
  {
    AtomicFile file(folder / "f");
    file.write("half");
    EXPECT_EQ(folder.names().size(), 1u);
  }
  EXPECT_TRUE(folder.names().empty());
}

TEST(AtomicFile, WritesAtOffsets) {
  TemporaryFolder folder;
  AtomicFile file(folder / "f");
  file.write_at(4, std::as_bytes(std::span("efgh", 4)));
  file.write_at(0, std::as_bytes(std::span("abcd", 4)));
  file.commit();
  EXPECT_EQ(test::read_text(folder / "f"), "abcdefgh");
}

TEST(AtomicFile, TwoWritersOfOneNameDoNotMeet) {
  TemporaryFolder folder;
  AtomicFile a(folder / "f"), b(folder / "f");
  a.write("aaaa");
  b.write("bb");
  b.commit();
  EXPECT_EQ(test::read_text(folder / "f"), "bb");
  a.commit();
  EXPECT_EQ(test::read_text(folder / "f"), "aaaa");
  EXPECT_EQ(folder.names().size(), 1u);
}

TEST(AtomicFile, FullDiskKeepsTheOldFile) {
  TemporaryFolder folder;
  test::write_text(folder / "f", "old");
  const std::string message =
      message_on_full_disk(5'000, [&] { write_file_atomically(folder / "f", std::string(20'000, 'x')); });
  expect_contains(message, folder / "f");
  expect_contains(message, "5000 of 20000 bytes");
  expect_contains(message, "File too large");
  EXPECT_EQ(test::read_text(folder / "f"), "old");
  EXPECT_EQ(folder.names().size(), 1u);
}

TEST(AtomicFile, NamesAMissingFolder) {
  TemporaryFolder folder;
  const std::string message = message_of([&] { write_file_atomically(folder / "no/f", "x"); });
  expect_contains(message, folder / "no/f");
  expect_contains(message, "No such file or directory");
}

TEST(AtomicFile, ATargetThatIsAFolderIsAnError) {
  TemporaryFolder folder;
  fs::create_directory(folder / "d");
  expect_contains(message_of([&] { write_file_atomically(folder / "d", "x"); }), "Is a directory");
  EXPECT_EQ(folder.names(), std::vector<std::string>{"d"});
}

TEST(AtomicFolder, AppearsAtCommit) {
  TemporaryFolder folder;
  {
    AtomicFolder made(folder / "out/");
    test::write_text(made.path() + "/a", "1");
    fs::create_directory(made.path() + "/sub");
    test::write_text(made.path() + "/sub/b", "2");
    EXPECT_FALSE(fs::exists(folder / "out"));
    made.commit();
  }
  EXPECT_EQ(test::read_text(folder / "out/sub/b"), "2");
  EXPECT_EQ(folder.names(), std::vector<std::string>{"out"});
}

TEST(AtomicFolder, ReplacesAnOlderOneWhole) {
  TemporaryFolder folder;
  fs::create_directory(folder / "out");
  test::write_text(folder / "out/stale", "old");
  AtomicFolder made(folder / "out");
  test::write_text(made.path() + "/fresh", "new");
  EXPECT_TRUE(fs::exists(folder / "out/stale"));
  made.commit();
  EXPECT_FALSE(fs::exists(folder / "out/stale"));
  EXPECT_EQ(test::read_text(folder / "out/fresh"), "new");
  EXPECT_EQ(folder.names(), std::vector<std::string>{"out"});
}

TEST(AtomicFolder, UncommittedIsRemoved) {
  TemporaryFolder folder;
  fs::create_directory(folder / "out");
  test::write_text(folder / "out/kept", "old");
  {
    AtomicFolder made(folder / "out");
    test::write_text(made.path() + "/half", "x");
  }
  EXPECT_EQ(test::read_text(folder / "out/kept"), "old");
  EXPECT_EQ(folder.names(), std::vector<std::string>{"out"});
}

TEST(AtomicFolder, OneThatOthersBuiltIsAdopted) {
  TemporaryFolder folder;
  for (const bool commit : {true, false}) {
    fs::create_directory(folder / "out.tmp-x");
    test::write_text(folder / "out.tmp-x/part", "theirs");
    AtomicFolder made = AtomicFolder::adopt(folder / "out", folder / "out.tmp-x");
    EXPECT_EQ(made.path(), folder / "out.tmp-x");
    if (commit) made.commit();
  }
  EXPECT_EQ(test::read_text(folder / "out/part"), "theirs");
  EXPECT_EQ(folder.names(), std::vector<std::string>{"out"}) << "what is not committed goes";
}

TEST(ReadFullyAt, FillsOrNamesTheEnd) {
  TemporaryFolder folder;
  test::write_text(folder / "a", "0123456789");
  const FileDescriptor fd = open_for_reading(folder / "a");
  EXPECT_EQ(size_of_file(fd, folder / "a"), 10u);
  std::vector<std::byte> bytes(4);
  read_fully_at(fd, 3, bytes, folder / "a");
  EXPECT_EQ(as_text(bytes), "3456");
  const std::string message = message_of([&] { read_fully_at(fd, 8, bytes, folder / "a"); });
  expect_contains(message, folder / "a");
  expect_contains(message, "ends at byte 10, wanted 4 bytes from 8");
  expect_contains(message_of([&] { open_for_reading(folder / "b"); }), "No such file");
}

TEST(AtomicFolder, DoesNotReplaceAFile) {
  TemporaryFolder folder;
  test::write_text(folder / "f", "x");
  expect_contains(message_of([&] { AtomicFolder made(folder / "f"); }), "a file has that name");
  expect_contains(message_of([&] { AtomicFolder made(folder / "no/f"); }), "No such file");
}

}  // namespace
}  // namespace ridge
