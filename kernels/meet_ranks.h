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
    end_use(channel);
  }
  void end_use(int channel) const { ++last_use(channel); }

  /// The i-th 4 bytes of what is pushed to rank `to`, and those that rank `from` pushes, awaited.
  void push(int to, int channel, std::int64_t i, std::uint32_t value) const {
    const std::uint32_t use = next_use(channel);
    marked(ranks_.rank, to, channel, use, i)
        .store(std::uint64_t{small_sum::mark_of(use)} << 32 | value, std::memory_order_release);
  }
  std::uint32_t pushed(int from, int channel, std::int64_t i) const {
    const std::uint32_t use = next_use(channel);
    const MarkedWord here = marked(from, ranks_.rank, channel, use, i);
    std::uint64_t word = 0;
    await_until(from, [&] {
      word = here.load(std::memory_order_acquire);
      return static_cast<std::uint32_t>(word >> 32) == small_sum::mark_of(use);
    });
    return static_cast<std::uint32_t>(word);
  }

 private:
  using Layout = small_sum::Layout;
  using Word = std::atomic_ref<std::uint32_t>;
  using MarkedWord = std::atomic_ref<std::uint64_t>;
  using Clock = std::chrono::steady_clock;

  static std::uint32_t& word(std::byte* region, std::int64_t at) {
    return reinterpret_cast<std::uint32_t*>(region)[at];
  }
  std::uint32_t& last_use(int channel) const {
    return word(ranks_.region[ranks_.rank], Layout::use_word(channel));
  }
  void await(int channel, int peer, std::uint32_t use) const {
    const Word flag(word(ranks_.region[ranks_.rank], Layout::flag_word(channel, peer)));
    await_until(peer, [&] { return small_sum::has_come(flag.load(std::memory_order_acquire), use); });
  }
  template <class F>
  void await_until(int peer, const F& come) const {
    const Clock::time_point begin = Clock::now();
    for (int looks = 0; !come(); ++looks) {
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
  // Of 4 bytes, the i-th of what `from` pushes to `to`, with their mark.
  MarkedWord marked(int from, int to, int channel, std::uint32_t use, std::int64_t i) const {
    std::byte* at = ranks_.region[to] + ranks_.layout.push_byte(channel, use, from);
    return MarkedWord(reinterpret_cast<std::uint64_t*>(at)[i]);
  }

  const SmallSumRanks& ranks_;
  std::chrono::nanoseconds limit_;
};

}  // namespace ridge::kernels
