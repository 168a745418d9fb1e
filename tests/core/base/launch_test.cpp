#include "core/base/launch.h"

#include <gtest/gtest.h>

#include <thread>

namespace ridge {
namespace {

TEST(Launch, RunsTheFunctionOnceOnTheCpu) {
  Stream stream(Device::cpu, "test");
  int ran = 0;
  launch(stream, "op", Work{1, 2}, [&] { ++ran; });
  EXPECT_EQ(ran, 1);
  EXPECT_EQ(stream.virtual_seconds, 0);
}

TEST(Launch, RecordsWorkAndTimesWhereAProfilerLooks) {
  Stream stream(Device::cpu, "test");
  Profiler profiler;
  {
    const ProfilerScope scope(stream, &profiler);
    launch(stream, "slow", Work{10, 20}, [] { std::this_thread::sleep_for(std::chrono::milliseconds(3)); });
    launch(stream, "fast", Work{1, 2}, [] {});
  }
  launch(stream, "unseen", Work{1, 2}, [] {});
  ASSERT_EQ(profiler.records().size(), 2u);
  const LaunchRecord &slow = profiler.records()[0], &fast = profiler.records()[1];
  EXPECT_STREQ(slow.op, "slow");
  EXPECT_EQ(slow.flops, 10);
  EXPECT_EQ(slow.bytes, 20);
  EXPECT_GE(slow.end_ns - slow.begin_ns, 3000000);
  EXPECT_GE(slow.begin_ns, 0);
  EXPECT_GE(fast.begin_ns, slow.end_ns);
  EXPECT_GE(profiler.now_ns(), fast.end_ns);
}

TEST(Launch, AnErrorPassesThroughAndIsStillRecorded) {
  Stream stream(Device::cpu, "test");
  Profiler profiler;
  const ProfilerScope scope(stream, &profiler);
  EXPECT_THROW(launch(stream, "bad", Work{}, [] { fail("no"); }), Error);
  EXPECT_EQ(profiler.records().size(), 1u);
}

TEST(Launch, MetaSkipsTheFunctionAndAdvancesTheClock) {
  Stream stream(Device::meta, "test");
  stream.meta_ceilings = {100, 10, 5};
  Profiler profiler;
  const ProfilerScope scope(stream, &profiler);
  const auto never = [] { FAIL(); };
  launch(stream, "compute", Work{300, 1}, never);  // 3 s of arithmetic, 0.1 s of memory
  EXPECT_DOUBLE_EQ(stream.virtual_seconds, 3);
  launch(stream, "memory", Work{100, 20}, never);
  EXPECT_DOUBLE_EQ(stream.virtual_seconds, 5);
  ASSERT_EQ(profiler.records().size(), 2u);
  EXPECT_EQ(profiler.records()[1].begin_ns, 3000000000);
  EXPECT_EQ(profiler.records()[1].end_ns, 5000000000);
}

TEST(Launch, MetaWithoutCeilingsTakesNoTime) {
  Stream stream(Device::meta, "test");
  launch(stream, "op", Work{1e12, 1e12}, [] { FAIL(); });
  EXPECT_EQ(stream.virtual_seconds, 0);
}

TEST(Launch, ABodyForTheCpuAloneIsRefusedOnCuda) {
  Stream stream(Device::cuda, "test");
  EXPECT_THROW(launch(stream, "op", Work{}, [] { FAIL(); }), Error);
}

TEST(ProfilerScope, PutsBackWhatWasThere) {
  Stream stream(Device::cpu, "test");
  Profiler outer, inner;
  const ProfilerScope a(stream, &outer);
  {
    const ProfilerScope b(stream, &inner);
    EXPECT_EQ(stream.profiler, &inner);
    const ProfilerScope off(stream, nullptr);
    launch(stream, "op", Work{}, [] {});
  }
  EXPECT_EQ(stream.profiler, &outer);
  EXPECT_TRUE(inner.records().empty());
}

TEST(Streams, SizesOnMetaAreThoseOfTheDeviceThatItStandsFor) {
  EXPECT_EQ(planned_device(Device::cpu), Device::cpu);
  EXPECT_EQ(planned_device(Device::meta), Device::cpu);
  current_stream(Device::meta).meta_device = Device::cuda;
  EXPECT_EQ(planned_device(Device::meta), Device::cuda);
  current_stream(Device::meta).meta_device = Device::cpu;
}

TEST(Streams, EveryThreadHasItsOwn) {
  Stream& here = current_stream(Device::cpu);
  EXPECT_EQ(&here, &current_stream(Device::cpu));
  EXPECT_EQ(here.device(), Device::cpu);
  EXPECT_EQ(current_stream(Device::meta).device(), Device::meta);
  std::thread([&] { EXPECT_NE(&here, &current_stream(Device::cpu)); }).join();
}

TEST(Devices, NamesAndChoice) {
  EXPECT_EQ(parse_device("cpu"), Device::cpu);
  EXPECT_EQ(parse_device("auto"), cuda_devices().empty() ? Device::cpu : Device::cuda);
  EXPECT_EQ(name_of(Device::meta), "meta");
  if (!built_with_cuda()) {
    EXPECT_THROW(parse_device("cuda"), UserError);
  }
  EXPECT_THROW(parse_device("tpu"), UserError);
}

}  // namespace
}  // namespace ridge
