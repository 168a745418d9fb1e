#include "kernels/all_reduce_small.h"

#include <array>
#include <atomic>
#include <cstring>
#include <thread>

#include "core/base/error.h"
#include "core/base/launch.h"
#include "kernels/element.h"

namespace ridge::kernels {
namespace {

using small_sum::Cut;
using small_sum::Layout;

using Word = std::atomic_ref<std::uint32_t>;
using Clock = std::chrono::steady_clock;

std::uint32_t& word(std::byte* region, std::int64_t at) {
  return reinterpret_cast<std::uint32_t*>(region)[at];
}

// One rank's sum as the kernel's blocks make it, a channel at a time.
template <class T>
class Sum {
 public:
  Sum(const SmallSumRanks& ranks, const T* x, T* y, std::int64_t count)
      : ranks_(ranks),
        x_(x),
        y_(y),
        count_(count),
        cut_(Cut::of(small_sum::packs_of(count * std::int64_t{sizeof(T)}))) {}

  int channels() const { return cut_.channels; }

  void put(int channel) const {
    const std::uint32_t use = last_use(channel) + 1;
    const auto [begin, n] = elements(channel);
    if (n > 0)
      std::memcpy(slot(ranks_.rank, channel, use), x_ + begin, static_cast<std::size_t>(n) * sizeof(T));
    for (int r = 0; r < ranks_.size; ++r) {
      if (r == ranks_.rank) continue;
      Word(word(ranks_.region[r], Layout::flag_word(channel, ranks_.rank)))
          .store(use, std::memory_order_release);
    }
  }

  void take(int channel, std::chrono::nanoseconds limit) const {
    const std::uint32_t use = last_use(channel) + 1;
    for (int r = 0; r < ranks_.size; ++r) {
      if (r != ranks_.rank) await(channel, r, use, limit);
    }
    last_use(channel) = use;
    const auto [begin, n] = elements(channel);
    std::array<const T*, small_sum::kMostRanks> parts{};
    for (int r = 0; r < ranks_.size; ++r) parts[static_cast<std::size_t>(r)] = slot(r, channel, use);
    for (std::int64_t i = 0; i < n; ++i) {
      float sum = load(parts[0][i]);
      for (std::size_t r = 1; r < static_cast<std::size_t>(ranks_.size); ++r) sum += load(parts[r][i]);
      store(y_[begin + i], sum);
    }
  }

 private:
  // {the first, how many}
  std::pair<std::int64_t, std::int64_t> elements(int channel) const {
    constexpr std::int64_t kEach = small_sum::kPack / std::int64_t{sizeof(T)};
    const std::int64_t begin = std::min(count_, cut_.begin(channel) * kEach);
    return {begin, std::min(count_, cut_.begin(channel + 1) * kEach) - begin};
  }
  std::uint32_t& last_use(int channel) const {
    return word(ranks_.region[ranks_.rank], Layout::use_word(channel));
  }
  T* slot(int rank, int channel, std::uint32_t use) const {
    return reinterpret_cast<T*>(ranks_.region[rank] + ranks_.layout.slot_byte(channel, use));
  }

  void await(int channel, int peer, std::uint32_t use, std::chrono::nanoseconds limit) const {
    const Word flag(word(ranks_.region[ranks_.rank], Layout::flag_word(channel, peer)));
    const Clock::time_point begin = Clock::now();
    for (int looks = 0; !small_sum::has_come(flag.load(std::memory_order_acquire), use); ++looks) {
      if (Clock::now() - begin > limit)
        fail("a sum over ranks: rank {} did not come to it within {:g} s: it has ended, or hangs", peer,
             std::chrono::duration<double>(limit).count());
      if (looks < 100) {
        std::this_thread::yield();
      } else {
        std::this_thread::sleep_for(std::chrono::microseconds(20));
      }
    }
  }

  const SmallSumRanks& ranks_;
  const T* x_;
  T* y_;
  std::int64_t count_;
  Cut cut_;
};

// What a channel waits for is put before anything is waited for.
template <class T>
void sum_on_cpu(const SmallSumRanks& ranks, const T* x, T* y, std::int64_t count,
                std::chrono::nanoseconds limit) {
  const Sum<T> sum(ranks, x, y, count);
  for (int c = 0; c < sum.channels(); ++c) sum.put(c);
  for (int c = 0; c < sum.channels(); ++c) sum.take(c, limit);
}

}  // namespace

template <class T>
void all_reduce_small(Stream& stream, const SmallSumRanks& ranks, View<const T> x,
                      std::type_identity_t<View<T>> y, std::chrono::nanoseconds limit) {
  check(x.shape == y.shape && x.contiguous() && y.contiguous(), "all_reduce_small: dense x and y alike");
  check(ranks.size >= 1 && ranks.size <= small_sum::kMostRanks && ranks.rank >= 0 && ranks.rank < ranks.size,
        "all_reduce_small: a rank of up to 8");
  const std::int64_t n = x.numel();
  const Layout need = Layout::of(n * std::int64_t{sizeof(T)});
  check(need.slot_packs <= ranks.layout.slot_packs, "all_reduce_small: the regions have room");
  if (n == 0) return;
  const double others = ranks.size - 1;
  launch(
      stream, "all_reduce_small", Work{others * static_cast<double>(n), (others + 2) * x.bytes()},
      [&] { sum_on_cpu<T>(ranks, x.data, y.data, n, limit); },
      [&] { cuda::all_reduce_small<T>(stream, ranks, x, y, limit); });
}

template void all_reduce_small<float>(Stream&, const SmallSumRanks&, View<const float>, View<float>,
                                      std::chrono::nanoseconds);
template void all_reduce_small<bf16>(Stream&, const SmallSumRanks&, View<const bf16>, View<bf16>,
                                     std::chrono::nanoseconds);

}  // namespace ridge::kernels
