#include "kernels/all_reduce_small.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "core/base/error.h"
#include "core/base/launch.h"
#include "kernels/element.h"
#include "kernels/meet_ranks.h"

namespace ridge::kernels {
namespace {

using small_sum::Cut;
using small_sum::Layout;

// One rank's sum as the kernel's blocks make it, a channel at a time.
template <class T>
class Sum {
 public:
  Sum(const SmallSumRanks& ranks, const T* x, T* y, std::int64_t count, SmallSumEnd end,
      std::chrono::nanoseconds limit)
      : ranks_(ranks),
        meet_(ranks, limit),
        x_(x),
        y_(y),
        count_(count),
        end_(end),
        cut_(Cut::of(small_sum::packs_of(count * std::int64_t{sizeof(T)}))) {}

  int channels() const { return cut_.channels; }

  void put(int channel) const {
    const auto [begin, n] = elements(channel);
    if (small_sum::is_pushed(cut_.packs)) {
      push(channel, x_ + begin, n);
    } else {
      T* mine = meet_.template slot<T>(ranks_.rank, channel, meet_.next_use(channel));
      std::memcpy(mine, x_ + begin, static_cast<std::size_t>(n) * sizeof(T));
    }
    meet_.tell(channel);
  }

  void take(int channel) const {
    const auto [begin, n] = elements(channel);
    std::array<const T*, small_sum::kMostRanks> parts{};
    std::array<std::vector<std::uint32_t>, small_sum::kMostRanks> pushed;
    if (small_sum::is_pushed(cut_.packs)) {
      for (int r = 0; r < ranks_.size; ++r) {
        const auto at = static_cast<std::size_t>(r);
        if (r != ranks_.rank) pushed[at] = words_from(r, channel, n);
        parts[at] = r == ranks_.rank ? x_ + begin : reinterpret_cast<const T*>(pushed[at].data());
      }
      meet_.end_use(channel);
    } else {
      const std::uint32_t use = meet_.next_use(channel);
      meet_.await(channel);
      for (int r = 0; r < ranks_.size; ++r)
        parts[static_cast<std::size_t>(r)] = meet_.template slot<T>(r, channel, use);
    }
    for (std::int64_t i = 0; i < n; ++i) {
      float sum = load(parts[0][i]);
      for (std::size_t r = 1; r < static_cast<std::size_t>(ranks_.size); ++r) sum += load(parts[r][i]);
      T& y = y_[begin + i];
      const float before = load(y);
      store(y, sum);
      if (end_ == SmallSumEnd::add) store(y, before + load(y));
    }
  }

 private:
  static constexpr std::int64_t kInWord = 4 / std::int64_t{sizeof(T)};
  static std::int64_t words_of(std::int64_t elements) { return (elements + kInWord - 1) / kInWord; }

  void push(int channel, const T* values, std::int64_t n) const {
    for (std::int64_t i = 0; i < words_of(n); ++i) {
      std::uint32_t word = 0;
      const std::int64_t some = std::min(kInWord, n - i * kInWord);
      std::memcpy(&word, values + i * kInWord, static_cast<std::size_t>(some) * sizeof(T));
      for (int r = 0; r < ranks_.size; ++r) {
        if (r != ranks_.rank) meet_.push(r, channel, i, word);
      }
    }
  }
  std::vector<std::uint32_t> words_from(int rank, int channel, std::int64_t n) const {
    std::vector<std::uint32_t> words;
    for (std::int64_t i = 0; i < words_of(n); ++i) words.push_back(meet_.pushed(rank, channel, i));
    return words;
  }
  // {the first, how many}
  std::pair<std::int64_t, std::int64_t> elements(int channel) const {
    constexpr std::int64_t kEach = small_sum::kPack / std::int64_t{sizeof(T)};
    const std::int64_t begin = std::min(count_, cut_.begin(channel) * kEach);
    return {begin, std::min(count_, cut_.begin(channel + 1) * kEach) - begin};
  }

  const SmallSumRanks& ranks_;
  MeetRanks meet_;
  const T* x_;
  T* y_;
  std::int64_t count_;
  SmallSumEnd end_;
  Cut cut_;
};

// What a channel waits for is put before anything is waited for.
template <class T>
void sum_on_cpu(const SmallSumRanks& ranks, const T* x, T* y, std::int64_t count, SmallSumEnd end,
                std::chrono::nanoseconds limit) {
  const Sum<T> sum(ranks, x, y, count, end, limit);
  for (int c = 0; c < sum.channels(); ++c) sum.put(c);
  for (int c = 0; c < sum.channels(); ++c) sum.take(c);
}

}  // namespace

template <class T>
void all_reduce_small(Stream& stream, const SmallSumRanks& ranks, View<const T> x,
                      std::type_identity_t<View<T>> y, SmallSumEnd end, std::chrono::nanoseconds limit) {
  check(x.shape == y.shape && x.contiguous() && y.contiguous(), "all_reduce_small: dense x and y alike");
  check(ranks.size >= 1 && ranks.size <= small_sum::kMostRanks && ranks.rank >= 0 && ranks.rank < ranks.size,
        "all_reduce_small: a rank of up to 8");
  const std::int64_t n = x.numel();
  const Layout need = Layout::of(n * std::int64_t{sizeof(T)});
  check(need.slot_packs <= ranks.layout.slot_packs, "all_reduce_small: the regions have room");
  check(end == SmallSumEnd::store || x.data != y.data, "all_reduce_small: x is added to another y");
  if (n == 0) return;
  const double others = ranks.size - 1;
  launch(
      stream, "all_reduce_small",
      Work{others * static_cast<double>(n), (others + (end == SmallSumEnd::add ? 3 : 2)) * x.bytes()},
      [&] { sum_on_cpu<T>(ranks, x.data, y.data, n, end, limit); },
      [&] { cuda::all_reduce_small<T>(stream, ranks, x, y, end, limit); });
}

template void all_reduce_small<float>(Stream&, const SmallSumRanks&, View<const float>, View<float>,
                                      SmallSumEnd, std::chrono::nanoseconds);
template void all_reduce_small<bf16>(Stream&, const SmallSumRanks&, View<const bf16>, View<bf16>, SmallSumEnd,
                                     std::chrono::nanoseconds);

}  // namespace ridge::kernels
