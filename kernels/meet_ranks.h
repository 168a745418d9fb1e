// How a channel of one rank meets those of others that share memory, on the CPU: see
// all_reduce_small_layout.h.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <thread>

#include "core/base/error.h"
#include "kernels/all_reduce_small.h"

namespace ridge::kernels {

class MeetRanks {
 public:
  MeetRanks(const SmallSumRanks& ranks, std::chrono::nanoseconds limit) : ranks_(ranks), limit_(limit) {}

  std::uint32_t next_use(int channel) const { return last_use(channel) + 1; }
  template <class T>
  T* slot(int rank, int channel, std::uint32_t use) const {
    return reinterpret_cast<T*>(ranks_.region[rank] + ranks_.layout.slot_byte(channel, use));
  }
  /// This rank's values are in its slot. What a rank waits for in any channel it has told in all of them.
  void tell(int channel) const {
    for (int r = 0; r < ranks_.size; ++r) {
      if (r == ranks_.rank) continue;
      Word(word(ranks_.region[r], Layout::flag_word(channel, ranks_.rank)))
          .store(next_use(channel), std::memory_order_release);
    }
  }
  /// Returns when all ranks' values are in their slots, which ends this use.
  void await(int channel) const {
    const std::uint32_t use = next_use(channel);
    for (int r = 0; r < ranks_.size; ++r) {
      if (r != ranks_.rank) await(channel, r, use);
    }
    last_use(channel) = use;
  }

 private:
  using Layout = small_sum::Layout;
  using Word = std::atomic_ref<std::uint32_t>;
  using Clock = std::chrono::steady_clock;

  static std::uint32_t& word(std::byte* region, std::int64_t at) {
    return reinterpret_cast<std::uint32_t*>(region)[at];
  }
  std::uint32_t& last_use(int channel) const {
    return word(ranks_.region[ranks_.rank], Layout::use_word(channel));
  }
  void await(int channel, int peer, std::uint32_t use) const {
    const Word flag(word(ranks_.region[ranks_.rank], Layout::flag_word(channel, peer)));
    const Clock::time_point begin = Clock::now();
    for (int looks = 0; !small_sum::has_come(flag.load(std::memory_order_acquire), use); ++looks) {
      if (Clock::now() - begin > limit_)
        fail("a sum over ranks: rank {} did not come to it within {:g} s: it has ended, or hangs", peer,
             std::chrono::duration<double>(limit_).count());
      if (looks < 100) {
        std::this_thread::yield();
      } else {
        std::this_thread::sleep_for(std::chrono::microseconds(20));
      }
    }
  }

  const SmallSumRanks& ranks_;
  std::chrono::nanoseconds limit_;
};

}  // namespace ridge::kernels
