#include <gtest/gtest.h>

#include "core/base/error.h"
#include "core/base/launch.h"
#include "parallel/groups.h"
#include "parallel/simulated_communicator.h"

namespace ridge::parallel {
namespace {

constexpr SimulatedNetwork kNetwork{1e6, 0.25};  // bytes per s, s

DeviceSpan<float> on_meta(std::size_t count) { return {nullptr, count, Device::meta}; }
double now() { return current_stream(Device::meta).virtual_seconds; }
void compute(double seconds) { current_stream(Device::meta).virtual_seconds += seconds; }

class Simulated : public ::testing::Test {
 protected:
  void SetUp() override { current_stream(Device::meta).virtual_seconds = 10; }
  void TearDown() override { current_stream(Device::meta).virtual_seconds = 0; }

  // How long the compute stream is held by `body`.
  template <class F>
  static double held(F&& body) {
    const double before = now();
    body();
    return now() - before;
  }
};

TEST_F(Simulated, CollectivesLastWhatARingTakes) {
  for (const int n : {2, 3, 8, 4096}) {
    SimulatedCommunicator ranks(kNetwork, n, n - 1);
    const auto whole = static_cast<std::size_t>(n) * 1000;
    const double all = 4e3 * n / 1e6, others = (n - 1.0) / n;  // s, of 4 bytes an element
    const auto expect_seconds = [](double got, double want) { EXPECT_NEAR(got, want, 1e-9 * (want + 20)); };
    expect_seconds(held([&] { ranks.all_reduce(on_meta(whole)); }), 0.25 + 2 * others * all);
    expect_seconds(held([&] { ranks.all_gather<float>(on_meta(1000), on_meta(whole)); }),
                   0.25 + others * all);
    expect_seconds(held([&] { ranks.reduce_scatter<float>(on_meta(whole), on_meta(1000)); }),
                   0.25 + others * all);
    expect_seconds(held([&] { ranks.all_to_all(on_meta(whole), on_meta(whole)); }), 0.25 + others * all);
    expect_seconds(held([&] { ranks.broadcast(on_meta(whole), 0); }), 0.25 + all);
    expect_seconds(held([&] { ranks.exchange({ranks.send_to(0, on_meta(3000))}); }), 0.25 + 0.012);
    expect_seconds(held([&] {
                     ranks.exchange({ranks.send_to(0, on_meta(1000)), ranks.receive_from(0, on_meta(3000)),
                                     ranks.receive_from(0, on_meta(2000))});
                   }),
                   0.25 + 0.020);
    const double wire = 2 * others * all + 3 * others * all + all + 0.012 + 0.020;
    expect_seconds(ranks.time().exposed_seconds, 7 * 0.25 + wire);
    expect_seconds(ranks.time().busy_seconds, 7 * 0.25 + wire);
    EXPECT_NEAR(ranks.time().bytes, wire * 1e6, 1e-3);
  }
}

TEST_F(Simulated, WhatIsComputedMeanwhileIsNotExposed) {
  SimulatedCommunicator ranks(kNetwork, 2, 0);
  const auto pending = ranks.all_reduce_async(on_meta(250000));  // 1.25 s
  compute(1);
  EXPECT_DOUBLE_EQ(held([&] { pending->wait(); }), 0.25);
  EXPECT_EQ(held([&] { pending->wait(); }), 0);
  EXPECT_DOUBLE_EQ(ranks.time().exposed_seconds, 0.25);
  const auto hidden = ranks.all_reduce_async(on_meta(250000));
  compute(2);
  EXPECT_EQ(held([&] { hidden->wait(); }), 0);
  EXPECT_DOUBLE_EQ(ranks.time().exposed_seconds, 0.25);
  EXPECT_DOUBLE_EQ(ranks.time().busy_seconds, 2.5);
}

TEST_F(Simulated, CollectivesOfOneGroupRunOneAfterAnother) {
  SimulatedCommunicator ranks(kNetwork, 2, 0), others(kNetwork, 2, 0);
  const auto first = ranks.all_reduce_async(on_meta(250000)),
             second = ranks.all_reduce_async(on_meta(250000));
  const auto beside = others.all_reduce_async(on_meta(250000));
  EXPECT_DOUBLE_EQ(held([&] { beside->wait(); }), 1.25);
  EXPECT_EQ(held([&] { first->wait(); }), 0);
  EXPECT_DOUBLE_EQ(held([&] { second->wait(); }), 1.25);
  EXPECT_DOUBLE_EQ(ranks.time().exposed_seconds, 1.25);
  EXPECT_DOUBLE_EQ(others.time().exposed_seconds, 1.25);
}

TEST_F(Simulated, OneRankTakesNoTime) {
  SimulatedCommunicator ranks(kNetwork, 1, 0);
  EXPECT_EQ(held([&] {
              ranks.all_reduce(on_meta(1000));
              ranks.all_to_all(on_meta(1000), on_meta(1000));
              ranks.broadcast(on_meta(1000), 0);
            }),
            0);
}

TEST_F(Simulated, AFewBytesOfHostMemoryAreLeftAlone) {
  SimulatedCommunicator ranks(kNetwork, 2, 0);
  std::vector<double> loss{1.5, 2.5}, many(9);
  EXPECT_EQ(held([&] { ranks.all_reduce(std::span<double>(loss)); }), 0);
  EXPECT_EQ(loss, (std::vector<double>{1.5, 2.5}));
  EXPECT_THROW(ranks.all_reduce(std::span<double>(many)), Error);
  EXPECT_THROW(ranks.all_reduce(DeviceSpan<float>{nullptr, 1, Device::cuda}), Error);
}

TEST_F(Simulated, AProfilerOfItsStreamSeesWhatIsOnTheWire) {
  SimulatedCommunicator ranks(kNetwork, 4, 1);
  Profiler profiler;
  const ProfilerScope scope(ranks.stream(), &profiler);
  ranks.all_reduce(on_meta(1000));
  const auto half = ranks.split_by([](int r) { return r / 2; });
  half->exchange({half->send_to(0, on_meta(1000))});
  ASSERT_EQ(profiler.records().size(), 2u);
  EXPECT_STREQ(profiler.records()[0].op, "all_reduce");
  EXPECT_EQ(profiler.records()[0].bytes, 6000);
  EXPECT_EQ(profiler.records()[0].begin_ns, 10250000000);
  EXPECT_EQ(profiler.records()[0].end_ns, 10256000000);
  EXPECT_STREQ(profiler.records()[1].op, "exchange");
}

TEST_F(Simulated, SplitsCountWithTheWhole) {
  SimulatedCommunicator ranks(kNetwork, 6, 4);
  const auto part = ranks.split_by([](int r) { return r % 2; });
  EXPECT_EQ(part->size(), 3);
  EXPECT_EQ(part->rank(), 2);
  EXPECT_EQ(ranks.split_by([](int) { return -1; }), nullptr);
  EXPECT_THROW(ranks.split(0), Error);
  const auto first = ranks.all_reduce_async(on_meta(300000)),
             second = part->all_reduce_async(on_meta(300000));
  second->wait();  // 0.25 + 2 * 2/3 * 1.2 s
  EXPECT_DOUBLE_EQ(ranks.time().exposed_seconds, 1.85);
  first->wait();  // 0.25 + 2 * 5/6 * 1.2 s
  EXPECT_DOUBLE_EQ(ranks.time().exposed_seconds, 2.25);
  ranks.reset();
  current_stream(Device::meta).virtual_seconds = 0;
  EXPECT_EQ(ranks.time().exposed_seconds, 0);
  EXPECT_DOUBLE_EQ(held([&] { part->all_reduce(on_meta(300000)); }), 1.85);
}

TEST_F(Simulated, BadGroupsAreErrors) {
  EXPECT_THROW(SimulatedCommunicator(kNetwork, 0, 0), Error);
  EXPECT_THROW(SimulatedCommunicator(kNetwork, 2, 2), Error);
  EXPECT_THROW(SimulatedCommunicator(SimulatedNetwork{}, 2, 0), Error);
}

TEST_F(Simulated, GroupsHaveTheirTimesByAxis) {
  const Mesh mesh({2, 1, 4, 2, 8});
  // Ranks of a host of 8 are neighbours; others meet on a slower network.
  Groups groups = Groups::simulated(mesh, 77, [](const std::vector<int>& ranks) {
    return ranks.front() / 8 == ranks.back() / 8 ? SimulatedNetwork{8e6, 0} : SimulatedNetwork{1e6, 0};
  });
  EXPECT_EQ(groups.world().size(), 128);
  EXPECT_EQ(groups.world().rank(), 77);
  for (int a = 0; a < kAxes; ++a) {
    const Axis axis = static_cast<Axis>(a);
    EXPECT_EQ(groups.along(axis).size(), mesh.size(axis));
    EXPECT_EQ(groups.along(axis).rank(), groups.coordinate(axis));
  }
  EXPECT_EQ(groups.sharding().size(), 8);
  EXPECT_EQ(groups.kv_copies(2).size(), 2);
  EXPECT_EQ(groups.kv_copies(2).rank(), 1);
  groups.along(Axis::tp).all_reduce(on_meta(2000000));         // 2 * 7/8 * 8 / 8 s
  groups.kv_copies(2).all_reduce(on_meta(2000000));            // 2 * 1/2 * 8 / 8 s
  groups.sharding().all_reduce(on_meta(2000000));              // 2 * 7/8 * 8 s
  groups.along(Axis::replicate).all_reduce(on_meta(2000000));  // one rank
  groups.world().all_reduce(on_meta(128));                     // 2 * 127/128 * 512e-6 s
  EXPECT_DOUBLE_EQ(groups.time(Axis::tp).exposed_seconds, 2.75);
  EXPECT_DOUBLE_EQ(groups.time(Axis::shard).exposed_seconds, 14);
  for (const Axis axis : {Axis::pp, Axis::replicate, Axis::cp}) EXPECT_EQ(groups.time(axis).busy_seconds, 0);
  EXPECT_NEAR(groups.world_time().exposed_seconds, 1016e-6, 1e-12);
  groups.reset_clocks();
  EXPECT_EQ(groups.time(Axis::tp).exposed_seconds, 0);
}

}  // namespace
}  // namespace ridge::parallel
