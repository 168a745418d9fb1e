// Flat buffers and their gradients: what is summed, where it lies, what it costs.
#include "parallel/sharded_unit.h"

#include <gtest/gtest.h>

#include "core/base/error.h"
#include "optim/optimizer.h"
#include "parallel/groups.h"
#include "tests/parallel/flat_units.h"
#include "tests/parallel/late_communicator.h"

namespace ridge::parallel {
namespace {

using test::FlatUnits;
using test::Held;

// Of ranks that are threads: shards x replicas, on each stage, with collectives that begin when waited for.
void on_ranks(int shards, int replicas,
              const std::function<void(Communicator&, Communicator&, const FsdpOptions&)>& body) {
  for (int stage = 1; stage <= 3; ++stage) {
    run_ranks(shards * replicas, [&](Communicator& world) {
      Groups groups(Mesh({1, replicas, shards, 1, 1}), world);
      test::LateCommunicator shard(groups.along(Axis::shard)), others(groups.along(Axis::replicate));
      FsdpOptions options;
      options.stage = stage;
      body(shard, others, options);
    });
  }
}

TEST(ShardedUnit, ParametersWithoutAGradientCountZero) {
  on_ranks(3, 2, [](Communicator& shard, Communicator& others, const FsdpOptions& options) {
    FlatUnits units({{{"a", {2, 3}}, {"unused", {40}}, {"c", {50}}}}, shard, others, options);
    for (int step = 0; step < 3; ++step) {
      units.pass({"a", "c"}, shard.rank() + 1);
      units.expect_all("a", 12);
      units.expect_all("unused", 0);
      units.expect_all("c", 12);
      units.clear();
    }
  });
}

// Ranks may disagree on what a unit used.
TEST(ShardedUnit, AParameterUsedOnOneRankAloneGetsItsGradientEverywhere) {
  on_ranks(3, 1, [](Communicator& shard, Communicator& others, const FsdpOptions& options) {
    FlatUnits units({{{"a", {20}}, {"b", {30}}, {"c", {40}}}}, shard, others, options);
    for (int step = 0; step < 2; ++step) {
      const std::vector<std::string> all{"a", "b", "c"}, two{"a", "c"};
      units.pass(shard.rank() == 1 ? all : two, 2);
      units.expect_all("a", 6);
      units.expect_all("b", 2);
      units.expect_all("c", 6);
      units.clear();
    }
  });
}

TEST(ShardedUnit, MicroBatchesAddUp) {
  for (const bool no_sync : {false, true}) {
    on_ranks(2, 2, [&](Communicator& shard, Communicator& others, FsdpOptions options) {
      options.no_sync = no_sync;
      FlatUnits units({{{"a", {20}}, {"b", {33}}}}, shard, others, options);
      for (int step = 0; step < 2; ++step) {
        units.pass({"a", "b"}, 1, false);
        units.pass({"b"}, 10, false);  // a is left out
        units.pass({"a"}, 100, true);  // b is left out of the last one
        units.expect_all("a", 4 * 101);
        units.expect_all("b", 4 * 11);
        units.clear();
      }
    });
  }
}

// An input that is on the tape but gets nothing.
struct Ignores {
  static constexpr const char* kName = "ignores";
  Tensor forward(const Tensor& x, const Tensor&) { return x.contiguous_copy(); }
  autograd::Grads vjp(const Tensor& dy, const autograd::Needs&) { return {dy, Tensor()}; }
};

TEST(ShardedUnit, AParameterOnTheTapeWithoutAGradientDoesNotSendOldNumbers) {
  on_ranks(2, 1, [](Communicator& shard, Communicator& others, const FsdpOptions& options) {
    FlatUnits units({{{"ignored", {40}}, {"x", {40}}}}, shard, others, options);
    units.pass({"x", "ignored"}, 5);  // leaves a gradient in the buffer
    units.expect_all("ignored", 10);
    units.clear();
    Fsdp& fsdp = units.fsdp();
    fsdp.begin(true);
    fsdp.enter(0, Tensor::zeros({2}, DType::f32));
    const Tensor loss = ops::sum(autograd::apply(Ignores{}, units.value("x"), units.value("ignored")));
    autograd::backward(fsdp.leave(0, loss));
    fsdp.finish();
    units.expect_all("x", 2);
    units.expect_all("ignored", 0);
  });
}

TEST(ShardedUnit, TypesHaveTheirOwnBuffers) {
  on_ranks(2, 1, [](Communicator& shard, Communicator& others, const FsdpOptions& options) {
    FlatUnits units({{{"a", {20}}, {"wide", {30}, DType::f64}, {"half", {40}, DType::bf16}, {"b", {50}}}},
                    shard, others, options);
    units.pass({"a", "wide", "half", "b"}, 0.5);
    for (const char* name : {"a", "wide", "half", "b"}) units.expect_all(name, 1);
    for (const OwnedPiece* piece : units.fsdp().pieces()) {
      const DType grad = autograd::grad_of(piece->value).dtype();
      EXPECT_EQ(grad, piece->value.dtype() == DType::f64 ? DType::f64 : DType::f32);
    }
  });
}

TEST(ShardedUnit, GradientsOfABf16SumAreAddedInF32) {
  on_ranks(2, 1, [](Communicator& shard, Communicator& others, FsdpOptions options) {
    options.reduce = DType::bf16;
    FlatUnits units({{{"a", {20}}}}, shard, others, options);
    units.pass({"a"}, 128, false);  // 2 x 128 = 256, beside which bf16 cannot hold 1
    units.pass({"a"}, 0.5, true);
    units.expect_all("a", options.stage == 1 ? 256 : 257);
  });
}

// Tied tables and copies of KV heads: parts of a gradient, on ranks of another group.
TEST(ShardedUnit, PartsOfASumAreAddedOverTheirRanks) {
  for (int stage = 1; stage <= 3; ++stage) {
    run_ranks(4, [&](Communicator& world) {
      Groups groups(Mesh({1, 1, 2, 1, 2}), world);
      FsdpOptions options;
      options.stage = stage;
      const auto alone = self_communicator();
      FlatUnits units({{{"own", {21}},
                        {"cut", {17}, DType::f32, true, true, &groups.along(Axis::tp)},
                        {"cut too", {3, 5}, DType::f32, true, true, &groups.along(Axis::tp)}}},
                      groups.along(Axis::shard), *alone, options);
      units.pass({"own", "cut", "cut too"}, world.rank() + 1);  // shard: ranks 0 and 2, or 1 and 3
      units.expect_all("own", world.rank() % 2 == 0 ? 1 + 3 : 2 + 4);
      units.expect_all("cut", 1 + 2 + 3 + 4);
      units.expect_all("cut too", 1 + 2 + 3 + 4);
    });
  }
}

TEST(ShardedUnit, NormsSeeWhatCountsAndNoGaps) {
  on_ranks(3, 1, [](Communicator& shard, Communicator& others, const FsdpOptions& options) {
    FlatUnits units({{{"a", {3}}, {"copy", {7}, DType::f32, true, false}, {"m", {3, 3}}, {"b", {5}}}}, shard,
                    others, options);
    units.pass({"a", "copy", "m", "b"}, 1);
    double squares = 0;
    for (const Tensor& t : units.fsdp().counted_gradients()) {
      for (const double g : test::values_of(t)) squares += g * g;
    }
    shard.all_reduce(std::span<double>(&squares, 1));
    EXPECT_EQ(squares, 9.0 * (3 + 9 + 5));
  });
}

// Where a parameter begins in its buffer, in bytes from the first.
std::int64_t place_of(const Tensor& t, const Tensor& first) {
  return static_cast<const char*>(t.data()) - static_cast<const char*>(first.data());
}

TEST(ShardedUnit, MatricesAreNeighboursAndAllBeginAtMultiplesOf16Bytes) {
  const auto self = self_communicator();
  FlatUnits units({{{"q", {4, 3}}, {"bias", {3}}, {"k", {3, 3}}, {"v", {2, 4}}}}, *self, *self);
  const Tensor& q = units.value("q");
  EXPECT_EQ(place_of(units.value("k"), q), 4 * 12);
  EXPECT_EQ(place_of(units.value("v"), q), 4 * (12 + 12));  // k has 9, and a gap
  EXPECT_EQ(place_of(units.value("bias"), q), 4 * (12 + 12 + 8));
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(q.data()) % 16, 0u);
  const auto grad = [&](const char* name) { return autograd::leaf_of(units.value(name)).buffer; };
  EXPECT_EQ(place_of(grad("v"), grad("q")), 4 * (12 + 12));
}

TEST(ShardedUnit, FrozenTensorsOfOneShardStayWhereTheyAre) {
  if (test::on_gpu()) GTEST_SKIP() << "a GPU has them in one buffer";
  const auto self = self_communicator();
  FlatUnits units({{{"frozen", {4, 3}, DType::f32, false}, {"a", {3}}}}, *self, *self);
  const Tensor value = Tensor::zeros({4, 3}, DType::f32);
  units.fsdp().write("frozen", value);
  EXPECT_EQ(units.value("frozen").data(), value.data());
  EXPECT_FALSE(units.value("frozen").requires_grad());
}

TEST(ShardedUnit, FrozenParametersAreSharded) {
  run_ranks(3, [](Communicator& shard) {
    const auto self = self_communicator();
    FlatUnits units({{{"frozen", {4, 33}, DType::f32, false}, {"a", {3}}}}, shard, *self);
    const Tensor want = test::random_tensor({4, 33}, 1, -1, 1, DType::f32);  // as FlatUnits wrote it
    EXPECT_TRUE(units.value("frozen").storage()->dropped());
    units.fsdp().enter(0, Tensor::zeros({2}, DType::f32));
    EXPECT_TRUE(test::same_bits(units.value("frozen"), want));
    units.pass({"a"}, 1);
    units.expect_all("a", 3);
    EXPECT_TRUE(units.value("frozen").storage()->dropped());
  });
}

// Bytes of each purpose on meta that one of `ranks` holds between steps.
std::int64_t meta_bytes(Purpose purpose, int shards, int stage) {
  const auto at = static_cast<std::size_t>(purpose);
  const std::int64_t before = memory_stats(Device::meta).live_by_purpose[at];
  Groups groups = Groups::simulated(Mesh({1, 1, shards, 1, 1}), 0, SimulatedNetwork{1e30, 0});
  FsdpOptions options;
  options.stage = stage;
  FlatUnits units({{{"a", {1 << 12}}, {"b", {1 << 10, 4}, DType::bf16}}}, groups.along(Axis::shard),
                  groups.along(Axis::replicate), options, Device::meta);
  units.pass({"a", "b"}, 1);
  return memory_stats(Device::meta).live_by_purpose[at] - before;
}

TEST(ShardedUnit, MemoryIsSharedByStage) {
  constexpr std::int64_t n = 1 << 12;
  EXPECT_EQ(meta_bytes(Purpose::weights, 1, 3), n * (4 + 2));
  EXPECT_EQ(meta_bytes(Purpose::gradients, 1, 3), n * (4 + 4));
  for (const int shards : {2, 4}) {
    EXPECT_EQ(meta_bytes(Purpose::weights, shards, 1), n * (4 + 2));
    EXPECT_EQ(meta_bytes(Purpose::weights, shards, 2), n * (4 + 2));
    EXPECT_EQ(meta_bytes(Purpose::weights, shards, 3), n * (4 + 2) / shards);
    EXPECT_EQ(meta_bytes(Purpose::gradients, shards, 1), n * (4 + 4));
    EXPECT_EQ(meta_bytes(Purpose::gradients, shards, 2), n * (4 + 4) / shards);
    EXPECT_EQ(meta_bytes(Purpose::gradients, shards, 3), n * (4 + 4) / shards);
  }
}

// A chain of two units: sums of the second are started before the backward pass of the first.
TEST(ShardedUnit, SumsAreStartedWhileBackwardRuns) {
  run_ranks(2, [](Communicator& world) {
    test::Log log;
    test::LateCommunicator shard(world, &log);
    const auto self = self_communicator();
    FlatUnits units({{{"first", {2}}}, {{"second", {2}}}}, shard, *self);
    const auto scatters = [&] {
      return std::count_if(log.begin(), log.end(), [](const auto& entry) { return entry.first == 's'; });
    };
    std::ptrdiff_t seen = -1;
    Fsdp& fsdp = units.fsdp();
    fsdp.begin(true);
    Tensor x = fsdp.enter(0, Tensor::zeros({2}, DType::f32));
    x = fsdp.leave(0, ops::add(x, ops::scale(units.value("first"), 2)));
    x = autograd::when_backward(x, [&] { seen = scatters(); });
    x = fsdp.enter(1, x);
    autograd::backward(fsdp.leave(1, ops::sum(ops::add(x, ops::scale(units.value("second"), 3)))));
    EXPECT_EQ(seen, 1);
    fsdp.finish();
    EXPECT_EQ(scatters(), 2);
    units.expect_all("first", 4);
    units.expect_all("second", 6);
  });
}

TEST(ShardedUnit, AnErrorInOneRanksBackwardEndsAll) {
  const auto body = [](Communicator& ranks) {
    const auto self = self_communicator();
    FlatUnits units({{{"a", {2}}}}, ranks, *self);
    if (ranks.rank() == 1) fail_user("rank 1 has no batch");
    units.pass({"a"}, 1);
  };
  try {
    run_ranks(3, body);
    FAIL() << "no error";
  } catch (const UserError& error) {
    EXPECT_STREQ(error.what(), "rank 1 has no batch");
  }
}

TEST(ShardedUnit, ValuesOfAnotherShapeAreRefused) {
  const auto self = self_communicator();
  FlatUnits units({{{"a", {2}}}}, *self, *self);
  EXPECT_THROW(units.fsdp().write("a", Tensor::zeros({3}, DType::f32)), Error);
  EXPECT_THROW(units.fsdp().write("b", Tensor::zeros({2}, DType::f32)), Error);
}

TEST(ShardedUnit, OneRankOnAGpuKeepsItsGradientsInItsBuffer) {
  if (!test::on_gpu()) GTEST_SKIP() << "the device under test is no GPU";
  const auto self = self_communicator();
  FlatUnits units({{{"a", {2}}, {"unused", {3}}, {"c", {5}}}}, *self, *self, {}, Device::cuda);
  for (int step = 0; step < 2; ++step) {
    units.pass({"a", "c"}, 3);
    units.expect_all("a", 3);
    units.expect_all("c", 3);
    units.expect_all("unused", 0);
    EXPECT_NEAR(optim::norm_of(units.fsdp().counted_gradients()).item(), std::sqrt(9.0 * 7), 1e-12);
    units.clear();
  }
}

}  // namespace
}  // namespace ridge::parallel
