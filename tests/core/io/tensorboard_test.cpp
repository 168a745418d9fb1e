#include "core/io/tensorboard.h"

#include <gtest/gtest.h>

#include <cstring>

#include "core/io/tensorboard.pb.h"
#include "tests/core/io/io_test_util.h"

namespace ridge {
namespace {

using test::expect_contains;
using test::message_of;
using test::TemporaryFolder;

std::string hex(std::string_view bytes) {
  std::string text;
  for (const char c : bytes) text += fmt::format("{:02x}", static_cast<unsigned char>(c));
  return text;
}

std::uint32_t bits_at(const std::string& text, std::size_t at) {
  std::uint32_t value = 0;
  std::memcpy(&value, text.data() + at, 4);
  return value;
}

// All events of a file, every length and checksum verified.
std::vector<tensorboard::Event> read_events(const std::string& path) {
  const std::string text = test::read_text(path);
  std::vector<tensorboard::Event> events;
  for (std::size_t at = 0; at < text.size();) {
    std::uint64_t length = 0;
    std::memcpy(&length, text.data() + at, 8);
    EXPECT_LE(at + 16 + length, text.size());
    const std::string payload = text.substr(at + 12, length);
    EXPECT_EQ(text.substr(at, 16 + length), tensorboard_record(payload));
    EXPECT_TRUE(events.emplace_back().ParseFromString(payload));
    at += 16 + length;
  }
  return events;
}

TEST(TensorboardRecord, MatchesThePublishedVector) {
  tensorboard::Event event;
  event.set_wall_time(1.0);
  event.set_file_version("brain.Event:2");
  const std::string record = tensorboard_record(event.SerializeAsString());
  EXPECT_EQ(hex(record.substr(12, 24)), "09000000000000f03f1a0d627261696e2e4576656e743a32");
  EXPECT_EQ(record.size(), 40u);
  EXPECT_EQ(bits_at(record, 8), 0x224b7fa3u);
  EXPECT_EQ(bits_at(record, 36), 0x7a57bf86u);
  EXPECT_EQ(masked_crc32c(std::as_bytes(std::span("123456789", 9))), 0xc78ab0e5u);
}

TEST(EventWriter, WritesScalars) {
  TemporaryFolder folder;
  {
    EventWriter writer(folder / "runs/a");
    expect_contains(writer.path(), "events.out.tfevents.");
    EXPECT_EQ(read_events(writer.path()).size(), 1u);  // TensorBoard may look before the first step
    for (int step = 0; step < 5; ++step) writer.scalar("train/loss", step, 4.0 / (step + 1));
    writer.flush();
    EXPECT_EQ(read_events(writer.path()).size(), 6u);
    writer.scalar("lr", 1LL << 40, 1e-5);
  }
  const auto events =
      read_events(folder / "runs/a/" +
                  std::filesystem::directory_iterator(folder / "runs/a")->path().filename().string());
  ASSERT_EQ(events.size(), 7u);
  EXPECT_EQ(events[0].file_version(), "brain.Event:2");
  EXPECT_EQ(events[3].summary().value(0).tag(), "train/loss");
  EXPECT_EQ(events[3].step(), 2);
  EXPECT_EQ(events[3].summary().value(0).simple_value(), static_cast<float>(4.0 / 3));
  EXPECT_EQ(events[6].step(), 1LL << 40);
  EXPECT_GT(events[6].wall_time(), 1.6e9);
}

TEST(EventWriter, TwoOfOneProcessHaveFilesOfTheirOwn) {
  TemporaryFolder folder;
  EventWriter a(folder.path()), b(folder.path());
  EXPECT_NE(a.path(), b.path());
  const EventWriter moved = std::move(a);
  EXPECT_EQ(folder.names().size(), 2u);
}

TEST(EventWriter, NamesWhatFails) {
  TemporaryFolder folder;
  test::write_text(folder / "file", "x");
  expect_contains(message_of([&] { EventWriter writer(folder / "file/runs"); }),
                  "cannot create the folder '" + (folder / "file/runs"));
  const std::string message = test::message_on_full_disk(1000, [&] {
    EventWriter writer(folder.path());
    for (int step = 0; step < 100'000; ++step) writer.scalar("loss", step, 1.0);
  });
  expect_contains(message, "File too large");
}

}  // namespace
}  // namespace ridge
