#include "core/io/perfetto.h"

#include <gtest/gtest.h>

#include <map>

#include "core/io/perfetto.pb.h"
#include "tests/core/io/io_test_util.h"

namespace ridge {
namespace {

using test::expect_contains;
using test::message_of;
using test::TemporaryFolder;

perfetto::Trace read_trace(const std::string& path) {
  perfetto::Trace trace;
  EXPECT_TRUE(trace.ParseFromString(test::read_text(path)));
  return trace;
}

void write_sample(const std::string& path) {
  PerfettoWriter writer(path);
  const auto process = writer.process(10, "rank 0");
  const auto stream = writer.thread(10, 7, "stream 0");
  const auto memory = writer.counter(process, "bytes in use");
  const TraceAnnotation annotations[] = {{"flops", std::int64_t{1} << 40}, {"share", 0.5}};
  writer.begin(stream, "step", 1'000);
  for (std::uint64_t i = 0; i < 3; ++i) {
    writer.begin(stream, "matmul", 2'000 + 100 * i, annotations);
    writer.value(memory, 2'010 + 100 * i, static_cast<double>(i));
    writer.end(stream, 2'050 + 100 * i);
  }
  writer.instant(stream, "step", 2'900);
  writer.end(stream, 3'000);
}

TEST(PerfettoWriter, DescribesTracks) {
  TemporaryFolder folder;
  write_sample(folder / "t.perfetto");
  const perfetto::Trace trace = read_trace(folder / "t.perfetto");
  ASSERT_EQ(trace.packet_size(), 3 + 2 + 9 + 1);
  EXPECT_EQ(trace.packet(0).track_descriptor().process().process_name(), "rank 0");
  EXPECT_EQ(trace.packet(0).track_descriptor().process().pid(), 10);
  EXPECT_EQ(trace.packet(1).track_descriptor().thread().thread_name(), "stream 0");
  EXPECT_EQ(trace.packet(1).track_descriptor().thread().tid(), 7);
  EXPECT_TRUE(trace.packet(2).track_descriptor().has_counter());
  EXPECT_EQ(trace.packet(2).track_descriptor().parent_uuid(), trace.packet(0).track_descriptor().uuid());
  for (int i = 0; i < trace.packet_size(); ++i) {
    EXPECT_NE(trace.packet(i).trusted_packet_sequence_id(), 0u);
    EXPECT_EQ(trace.packet(i).sequence_flags(), i == 0 ? 3u : 2u);
  }
}

// Follows the interned names as a reader does: each number is defined once, before or where it is used.
TEST(PerfettoWriter, SlicesCarryNamesTimesAndAnnotations) {
  TemporaryFolder folder;
  write_sample(folder / "t.perfetto");
  std::map<std::uint64_t, std::string> names, keys;
  std::string story;
  const perfetto::Trace trace = read_trace(folder / "t.perfetto");
  for (const perfetto::TracePacket& packet : trace.packet()) {
    for (const auto& entry : packet.interned_data().event_names())
      EXPECT_TRUE(names.emplace(entry.iid(), entry.name()).second);
    for (const auto& entry : packet.interned_data().debug_annotation_names())
      EXPECT_TRUE(keys.emplace(entry.iid(), entry.name()).second);
    if (!packet.has_track_event()) continue;
    const perfetto::TrackEvent& event = packet.track_event();
    story += fmt::format("{}@{}#{}", static_cast<int>(event.type()), packet.timestamp(), event.track_uuid());
    if (event.has_name_iid()) story += names.at(event.name_iid());
    if (event.has_double_counter_value()) story += fmt::format("={}", event.double_counter_value());
    for (const auto& a : event.debug_annotations()) {
      story += fmt::format(",{}={}", keys.at(a.name_iid()),
                           a.has_int_value() ? static_cast<double>(a.int_value()) : a.double_value());
    }
    story += ' ';
  }
  EXPECT_EQ(story,
            "1@1000#2step 1@2000#2matmul,flops=1099511627776,share=0.5 4@2010#3=0 2@2050#2 "
            "1@2100#2matmul,flops=1099511627776,share=0.5 4@2110#3=1 2@2150#2 "
            "1@2200#2matmul,flops=1099511627776,share=0.5 4@2210#3=2 2@2250#2 3@2900#2step 2@3000#2 ");
}

TEST(PerfettoWriter, LargeTracesAreWrittenAsTheyGrow) {
  TemporaryFolder folder;
  PerfettoWriter writer(folder / "t.perfetto");
  const auto thread = writer.thread(1, 1, "t");
  for (std::uint64_t i = 0; i < 100'000; ++i) {
    writer.begin(thread, "op", 10 * i);
    writer.end(thread, 10 * i + 5);
  }
  EXPECT_GT(std::filesystem::file_size(folder / "t.perfetto"), std::uintmax_t{1} << 20);
  writer.flush();
  EXPECT_EQ(read_trace(folder / "t.perfetto").packet_size(), 200'001);
}

TEST(PerfettoWriter, NamesWhatFails) {
  TemporaryFolder folder;
  expect_contains(message_of([&] { PerfettoWriter writer(folder / "no/t"); }),
                  "cannot create '" + (folder / "no/t") + "': No such file");
  const std::string message = test::message_on_full_disk(10, [&] {
    PerfettoWriter writer(folder / "t");
    writer.process(1, "a long enough name");
    writer.flush();
  });
  expect_contains(message, "cannot write '" + (folder / "t") + "'");
}

}  // namespace
}  // namespace ridge
