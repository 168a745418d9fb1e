#include "core/base/memory.h"

#include "core/base/cuda.h"

#include <gtest/gtest.h>

#include <cstring>
#include <deque>
#include <random>
#include <thread>
#include <vector>

#include "core/base/error.h"

namespace ridge {
namespace {

std::int64_t of(const MemoryStats& stats, Purpose purpose) {
  return stats.live_by_purpose[static_cast<std::size_t>(purpose)];
}
std::int64_t peak_of(const MemoryStats& stats, Purpose purpose) {
  return stats.peak_by_purpose[static_cast<std::size_t>(purpose)];
}

class Memory : public ::testing::Test {
 protected:
  void SetUp() override {
    for (const Device device : {Device::cpu, Device::meta}) {
      reset_memory_peaks(device);
      ASSERT_EQ(memory_stats(device).live, 0);
      ASSERT_EQ(memory_stats(device).reserved, 0);
    }
  }
};

TEST_F(Memory, BlocksAreAlignedWritableAndCounted) {
  for (const std::int64_t bytes :
       {0L, 1L, 63L, 64L, 65L, 4097L, 65536L, (1L << 20) - 1, 1L << 20, (3L << 20) + 7, (17L << 20) + 1}) {
    const Storage block(Device::cpu, bytes);
    ASSERT_NE(block.data(), nullptr);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(block.data()) % 64, 0u);
    EXPECT_GE(block.bytes(), bytes);
    EXPECT_LE(block.bytes(), std::max<std::int64_t>(bytes + bytes / 8 + 64, 64));
    EXPECT_FALSE(block.borrowed());
    EXPECT_EQ(memory_stats(Device::cpu).live, block.bytes());
    std::memset(block.data(), 0xAB, static_cast<std::size_t>(block.bytes()));
  }
  EXPECT_EQ(memory_stats(Device::cpu).live, 0);
}

TEST_F(Memory, AFreedBlockIsTheNextOneOfItsSize) {
  const void* first;
  {
    const Storage block(Device::cpu, 5000);
    first = block.data();
  }
  const std::int64_t reserved = memory_stats(Device::cpu).reserved;
  EXPECT_GT(reserved, 0);
  const Storage again(Device::cpu, 5000);
  EXPECT_EQ(again.data(), first);
  const Storage other(Device::cpu, 5000);
  EXPECT_NE(other.data(), first);
  EXPECT_EQ(memory_stats(Device::cpu).reserved, 2 * reserved);
}

TEST_F(Memory, PeaksStayUntilTheyAreReset) {
  auto a = std::make_unique<Storage>(Device::cpu, 1 << 16),
       b = std::make_unique<Storage>(Device::cpu, 1 << 17);
  const std::int64_t both = a->bytes() + b->bytes();
  b.reset();
  EXPECT_EQ(memory_stats(Device::cpu).peak_live, both);
  EXPECT_EQ(memory_stats(Device::cpu).live, a->bytes());
  EXPECT_EQ(memory_stats(Device::cpu).reserved, both);  // b's block waits
  reset_memory_peaks(Device::cpu);
  const MemoryStats stats = memory_stats(Device::cpu);
  EXPECT_EQ(stats.peak_live, a->bytes());
  EXPECT_EQ(stats.reserved, a->bytes());
  EXPECT_EQ(stats.peak_reserved, a->bytes());
  EXPECT_EQ(peak_of(stats, Purpose::activations), a->bytes());
}

TEST_F(Memory, FreeBlocksOfOtherSizesDoNotPileUp) {
  for (std::int64_t size = 1 << 16; size < 1 << 20; size += 1 << 14) const Storage block(Device::cpu, size);
  const MemoryStats stats = memory_stats(Device::cpu);
  EXPECT_LE(stats.peak_reserved, stats.peak_live + stats.peak_live / 8);
}

TEST_F(Memory, PurposesAreScopedByThread) {
  const Storage plain(Device::cpu, 64);
  {
    const PurposeScope weights(Purpose::weights);
    const Storage weight(Device::cpu, 128);
    {
      const PurposeScope workspace(Purpose::workspace);
      const Storage scratch(Device::cpu, 256);
      std::thread([] {
        const Storage elsewhere(Device::cpu, 512);  // another thread has its own purpose
        EXPECT_EQ(of(memory_stats(Device::cpu), Purpose::activations), 64 + 512);
      }).join();
      EXPECT_EQ(of(memory_stats(Device::cpu), Purpose::workspace), 256);
    }
    const Storage more(Device::cpu, 1024);
    EXPECT_EQ(of(memory_stats(Device::cpu), Purpose::weights), 128 + 1024);
  }
  const Storage after(Device::cpu, 64);
  const MemoryStats stats = memory_stats(Device::cpu);
  EXPECT_EQ(of(stats, Purpose::activations), 128);
  EXPECT_EQ(of(stats, Purpose::weights), 0);
  EXPECT_EQ(peak_of(stats, Purpose::weights), 128 + 1024);
  EXPECT_EQ(peak_of(stats, Purpose::workspace), 256);
  EXPECT_EQ(peak_of(stats, Purpose::moments), 0);
}

TEST_F(Memory, ABlockMayChangeItsPurpose) {
  {
    Storage block(Device::cpu, 4096);
    block.retag(Purpose::gradients);
    EXPECT_EQ(of(memory_stats(Device::cpu), Purpose::gradients), 4096);
    EXPECT_EQ(of(memory_stats(Device::cpu), Purpose::activations), 0);
    EXPECT_EQ(memory_stats(Device::cpu).live, 4096);
  }
  EXPECT_EQ(of(memory_stats(Device::cpu), Purpose::gradients), 0);
  EXPECT_EQ(of(memory_stats(Device::cpu), Purpose::activations), 0);
  EXPECT_EQ(peak_of(memory_stats(Device::cpu), Purpose::gradients), 4096);
}

TEST_F(Memory, BorrowedMemoryIsKeptAliveAndNotCounted) {
  auto owner = std::make_shared<std::vector<char>>(100);
  {
    const Storage block(owner->data(), 100, owner);
    EXPECT_EQ(owner.use_count(), 2);
    EXPECT_TRUE(block.borrowed());
    EXPECT_EQ(block.data(), owner->data());
    EXPECT_EQ(memory_stats(Device::cpu).live, 0);
  }
  EXPECT_EQ(owner.use_count(), 1);
  EXPECT_EQ(memory_stats(Device::cpu).live, 0);
}

TEST_F(Memory, WhatNoMachineHasIsTheUsersErrorAndCountsNothing) {
  constexpr std::int64_t kHeld = std::int64_t{4} << 20, huge = std::int64_t{1} << 60;
  const Storage held(Device::cpu, kHeld);
  try {
    const Storage block(Device::cpu, huge);
    FAIL();
  } catch (const UserError& error) {
    const std::string message = error.what();
    for (const char* part :
         {"1099511627776.0 MiB were asked for", "4.0 MiB are in use", "activations 4.0 MiB", "micro_batch"})
      EXPECT_NE(message.find(part), std::string::npos) << message;
  }
  EXPECT_EQ(memory_stats(Device::cpu).live, kHeld);
  EXPECT_EQ(memory_stats(Device::cpu).reserved, kHeld);
}

TEST_F(Memory, MetaCountsWithoutMemory) {
  const std::int64_t huge = std::int64_t{1} << 50;
  const Storage block(Device::meta, huge);
  EXPECT_EQ(memory_stats(Device::meta).live, huge);
  EXPECT_EQ(memory_stats(Device::cpu).live, 0);
}

TEST_F(Memory, CudaMemoryNeedsACudaBuild) {
  if (built_with_cuda()) GTEST_SKIP() << "this build has CUDA";
  EXPECT_EQ(memory_stats(Device::cuda).live, 0);
  EXPECT_THROW(Storage(Device::cuda, 64), UserError);
}

void expect_equal(const MemoryStats& a, const MemoryStats& b) {
  EXPECT_EQ(a.live, b.live);
  EXPECT_EQ(a.peak_live, b.peak_live);
  EXPECT_EQ(a.reserved, b.reserved);
  EXPECT_EQ(a.peak_reserved, b.peak_reserved);
  EXPECT_EQ(a.live_by_purpose, b.live_by_purpose);
  EXPECT_EQ(a.peak_by_purpose, b.peak_by_purpose);
}

// The planner stands on this: meta's pool takes the same decisions as the real one.
TEST_F(Memory, MetaAndCpuDecideAlike) {
  std::mt19937 rng(3);
  std::deque<std::unique_ptr<Storage>> real, forecast;
  for (int step = 0; step < 3000; ++step) {
    if (real.empty() || (real.size() < 40 && rng() % 2 == 0)) {
      const PurposeScope purpose(static_cast<Purpose>(rng() % kPurposes));
      const auto bytes = static_cast<std::int64_t>(rng() % (1u << (4 + rng() % 18)));
      real.push_back(std::make_unique<Storage>(Device::cpu, bytes));
      forecast.push_back(std::make_unique<Storage>(Device::meta, bytes));
    } else {
      const auto at = static_cast<std::ptrdiff_t>(rng() % real.size());
      real.erase(real.begin() + at);
      forecast.erase(forecast.begin() + at);
    }
    expect_equal(memory_stats(Device::cpu), memory_stats(Device::meta));
    if (HasFailure()) return;
    if (step == 1500) {
      reset_memory_peaks(Device::cpu);
      reset_memory_peaks(Device::meta);
    }
  }
  const MemoryStats stats = memory_stats(Device::cpu);
  EXPECT_GT(stats.peak_reserved, stats.live);
}

// Small, middle and large blocks, given back to the system in between: nobody else has this memory.
TEST_F(Memory, ManyThreadsTakeAndGive) {
  std::vector<std::thread> threads;
  for (unsigned seed = 0; seed < 4; ++seed) {
    threads.emplace_back([seed] {
      std::mt19937 rng(seed);
      std::deque<std::unique_ptr<Storage>> held;
      const auto mark = static_cast<unsigned char>(seed + 1);
      for (int i = 0; i < 2000; ++i) {
        const unsigned kind = rng() % 16;
        const std::int64_t size = kind == 0  ? (17 << 20)
                                  : kind < 6 ? (1 << 16) << rng() % 4
                                             : 64 + rng() % 4096;
        held.push_back(std::make_unique<Storage>(Device::cpu, size));
        auto* bytes = static_cast<unsigned char*>(held.back()->data());
        std::memset(bytes, mark, 64);
        std::memset(bytes + held.back()->bytes() - 64, mark, 64);
        if (held.size() < 8) continue;
        const auto* oldest = static_cast<const unsigned char*>(held.front()->data());
        for (int j = 0; j < 64; ++j) {
          ASSERT_EQ(oldest[j], mark);
          ASSERT_EQ(oldest[held.front()->bytes() - 64 + j], mark);
        }
        held.pop_front();
        if (i % 50 == 0) reset_memory_peaks(Device::cpu);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(memory_stats(Device::cpu).live, 0);
}

TEST_F(Memory, TheReportHasALineAPurpose) {
  const PurposeScope purpose(Purpose::moments);
  const Storage block(Device::cpu, 3 << 20);
  const std::string report = memory_report(memory_stats(Device::cpu));
  for (std::size_t p = 0; p < kPurposes; ++p)
    EXPECT_NE(report.find(name_of(static_cast<Purpose>(p))), std::string::npos);
  EXPECT_NE(report.find("moments"), std::string::npos);
  EXPECT_NE(report.find("3.0 MiB (peak 3.0)"), std::string::npos) << report;
}

}  // namespace
}  // namespace ridge
