#include "kernels/all_gather_small.h"

#include <algorithm>

#include "core/base/error.h"
#include "core/base/launch.h"
#include "kernels/meet_ranks.h"

namespace ridge::kernels {
namespace {

using small_sum::Cut;
using small_sum::Layout;

// One rank's part as the kernel's blocks have it, a channel at a time: elements of [R, each] for each rank.
template <class T>
class Gather {
 public:
  Gather(const SmallSumRanks& ranks, View<T> y_RV, std::chrono::nanoseconds limit)
      : ranks_(ranks),
        meet_(ranks, limit),
        y_(y_RV.data),
        columns_(RankColumns::of(y_RV.dim(1), ranks.size)),
        count_(y_RV.dim(0) * columns_.each),
        cut_(Cut::of(small_sum::packs_of(count_ * std::int64_t{sizeof(T)}))) {}

  int channels() const { return cut_.channels; }

  void put(int channel) const {
    T* mine = meet_.template slot<T>(ranks_.rank, channel, meet_.next_use(channel));
    visit(channel, ranks_.rank, [&](std::int64_t i, T& y) { mine[i] = y; });
    meet_.tell(channel);
  }
  void take(int channel) const {
    const std::uint32_t use = meet_.next_use(channel);
    meet_.await(channel);
    for (int r = 0; r < ranks_.size; ++r) {
      if (r == ranks_.rank) continue;
      const T* theirs = meet_.template slot<T>(r, channel, use);
      visit(channel, r, [&](std::int64_t i, T& y) { y = theirs[i]; });
    }
  }

 private:
  // body(place in the channel's slot, element of y)
  template <class F>
  void visit(int channel, int rank, const F& body) const {
    constexpr std::int64_t kEach = small_sum::kPack / std::int64_t{sizeof(T)};
    const std::int64_t begin = std::min(count_, cut_.begin(channel) * kEach);
    const std::int64_t end = std::min(count_, cut_.begin(channel + 1) * kEach);
    for (std::int64_t e = begin; e < end; ++e) {
      const std::int64_t row = e / columns_.each, column = rank * columns_.each + e % columns_.each;
      if (column < columns_.all) body(e - begin, y_[row * columns_.all + column]);
    }
  }

  const SmallSumRanks& ranks_;
  MeetRanks meet_;
  T* y_;
  RankColumns columns_;
  std::int64_t count_;
  Cut cut_;
};

}  // namespace

template <class T>
void all_gather_small(Stream& stream, const SmallSumRanks& ranks, View<T> y_RV,
                      std::chrono::nanoseconds limit) {
  check(y_RV.ndim() == 2 && y_RV.contiguous(), "all_gather_small: dense rows");
  check(ranks.size >= 1 && ranks.size <= small_sum::kMostRanks && ranks.rank >= 0 && ranks.rank < ranks.size,
        "all_gather_small: a rank of up to 8");
  if (y_RV.numel() == 0) return;
  const std::int64_t n = y_RV.dim(0) * RankColumns::of(y_RV.dim(1), ranks.size).each;
  check(Layout::of(n * std::int64_t{sizeof(T)}).slot_packs <= ranks.layout.slot_packs,
        "all_gather_small: the regions have room");
  launch(
      stream, "all_gather_small", Work{0, 2 * y_RV.bytes()},
      [&] {
        const Gather<T> gather(ranks, y_RV, limit);
        for (int c = 0; c < gather.channels(); ++c) gather.put(c);
        for (int c = 0; c < gather.channels(); ++c) gather.take(c);
      },
      [&] { cuda::all_gather_small<T>(stream, ranks, y_RV, limit); });
}

template void all_gather_small<float>(Stream&, const SmallSumRanks&, View<float>, std::chrono::nanoseconds);
template void all_gather_small<bf16>(Stream&, const SmallSumRanks&, View<bf16>, std::chrono::nanoseconds);

}  // namespace ridge::kernels
