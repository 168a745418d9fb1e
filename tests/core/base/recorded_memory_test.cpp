// Blocks of recorded work belong to it until it goes.
#include <gtest/gtest.h>

#include <optional>

#include "core/base/memory.h"

namespace ridge {
namespace {

constexpr std::int64_t kBytes = 123456;

TEST(RecordedMemory, KeepsItsBlocksToItself) {
  void* first = nullptr;
  {
    RecordedMemory memory(Device::cpu);
    {
      const RecordedMemory::Scope scope(memory);
      first = Storage(Device::cpu, kBytes).data();
      EXPECT_EQ(Storage(Device::cpu, kBytes).data(), first) << "inside, blocks are used again";
      const Storage held(Device::cpu, kBytes), other(Device::cpu, kBytes);
      EXPECT_NE(held.data(), other.data());
    }
    const Storage outside(Device::cpu, kBytes), more(Device::cpu, kBytes), third(Device::cpu, kBytes);
    for (const Storage* s : {&outside, &more, &third})
      EXPECT_NE(s->data(), first) << "it may be written by a replay";
    const std::int64_t live = memory_stats(Device::cpu).live;
    const RecordedMemory::Scope again(memory);
    const Storage reused(Device::cpu, kBytes);
    EXPECT_EQ(memory_stats(Device::cpu).live, live) << "its blocks count as used all along";
  }
  bool found = false;
  std::optional<Storage> blocks[8];
  for (auto& block : blocks) found = block.emplace(Device::cpu, kBytes).data() == first || found;
  EXPECT_TRUE(found) << "afterwards they are the pool's";
}

TEST(RecordedMemory, OtherDevicesAndScopesAreApart) {
  RecordedMemory outer(Device::cpu), inner(Device::cpu), meta(Device::meta);
  const RecordedMemory::Scope one(outer);
  void* first = Storage(Device::cpu, kBytes).data();
  {
    const RecordedMemory::Scope two(inner);
    EXPECT_NE(Storage(Device::cpu, kBytes).data(), first);
  }
  EXPECT_EQ(Storage(Device::cpu, kBytes).data(), first);
  const RecordedMemory::Scope three(meta);
  EXPECT_NE(Storage(Device::cpu, kBytes).data(), first);
}

}  // namespace
}  // namespace ridge
