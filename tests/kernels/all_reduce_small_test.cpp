// Ranks are threads with a stream each; on a GPU their kernels run beside each other.
#include "kernels/all_reduce_small.h"

#include <array>
#include <deque>
#include <functional>
#include <memory>
#include <thread>

#include "core/base/error.h"
#include "tests/kernels/rank_threads.h"

namespace ridge::kernels {
namespace {

using namespace testing;
using small_sum::Cut;
using small_sum::Layout;

// A kernel's code is loaded when it is first used, and that may wait for kernels that wait for others.
template <class T>
void load_code() {
  if (!on_gpu()) return;
  Regions one(1, 64);
  Array<T> x({1});
  all_reduce_small<T>(test_stream(), one.of(0), x.in(), x.view());
  wait_for_device();
}

template <class T>
T sum_of(int ranks, std::uint32_t use, std::int64_t i) {
  auto sum = static_cast<float>(value_of<T>(0, use, i));
  for (int r = 1; r < ranks; ++r) sum += static_cast<float>(value_of<T>(r, use, i));
  return static_cast<T>(sum);
}
constexpr int kBefore = 9;  // not a rank: whose values are there before a sum is added
template <class T>
int wrong_sums(int ranks, std::uint32_t use, const T* y, std::int64_t n, bool added = false) {
  int wrong = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    T want = sum_of<T>(ranks, use, i);
    if (added)
      want = static_cast<T>(static_cast<float>(value_of<T>(kBefore, use, i)) + static_cast<float>(want));
    wrong += std::memcmp(&want, y + i, sizeof(T)) == 0 ? 0 : 1;
  }
  return wrong;
}

/// One rank's sums, several at a time; elements that are not as they should be.
template <class T>
class Summing {
 public:
  static constexpr std::size_t kBurst = 5;

  Summing(Regions& regions, int rank, std::int64_t largest, bool in_place)
      : ranks_(regions.of(rank)), in_place_(in_place) {
    for (std::size_t b = 0; b < kBurst; ++b) {
      x_.emplace_back(static_cast<std::size_t>(largest));
      y_.emplace_back(static_cast<std::size_t>(largest));
    }
  }
  void start(std::uint32_t use, std::int64_t n, std::int64_t offset) {
    const std::size_t b = sums_.size();
    for (std::int64_t i = 0; i < n; ++i)
      x_[b][static_cast<std::size_t>(offset + i)] = value_of<T>(ranks_.rank, use, i);
    T* x = x_[b].data() + offset;
    T* y = in_place_ ? x : y_[b].data() + offset;
    const bool adds = !in_place_ && use % 3 != 0;
    if (adds) {
      for (std::int64_t i = 0; i < n; ++i) y[i] = value_of<T>(kBefore, use, i);
    }
    all_reduce_small<T>(stream_of(ranks_.rank), ranks_, View<const T>(x, {n}), View<T>(y, {n}),
                        adds ? SmallSumEnd::add : SmallSumEnd::store, std::chrono::seconds(100));
    sums_.push_back({use, n, y, adds});
  }
  bool full() const { return sums_.size() == kBurst; }
  void finish() {
    if (on_gpu()) ridge::cuda::synchronize(stream_of(ranks_.rank));
    for (const Done& sum : sums_) wrong_ += wrong_sums(ranks_.size, sum.use, sum.y, sum.n, sum.added);
    sums_.clear();
  }
  int wrong() const { return wrong_; }

 private:
  struct Done {
    std::uint32_t use;
    std::int64_t n;
    const T* y;
    bool added;
  };
  SmallSumRanks ranks_;
  bool in_place_;
  std::vector<Memory<T>> x_, y_;
  std::vector<Done> sums_;
  int wrong_ = 0;
};

/// Memory and streams are made and given back while no rank waits for another: that may wait for the GPU.
template <class T>
int wrong_of_all(int ranks, Regions& regions, std::int64_t largest, bool in_place,
                 const std::function<void(int rank, Summing<T>&)>& body) {
  load_code<T>();
  std::deque<Summing<T>> all;
  stream_of(ranks - 1);
  for (int r = 0; r < ranks; ++r) all.emplace_back(regions, r, largest, in_place);
  run_threads(ranks, [&](int r) { body(r, all[static_cast<std::size_t>(r)]); });
  int wrong = 0;
  for (const Summing<T>& summing : all) wrong += summing.wrong();
  return wrong;
}

template <class T>
class AllReduceSmall : public ::testing::Test {};
using Types = ::testing::Types<float, bf16>;
TYPED_TEST_SUITE(AllReduceSmall, Types);

TYPED_TEST(AllReduceSmall, HasTheBitsOfSumsInTheOrderOfRanks) {
  using T = TypeParam;
  const std::vector<std::int64_t> sizes{1, 3, 8, 61, 2048, 4096, 4097, 70001};
  for (int ranks = 1; ranks <= most_ranks(); ++ranks) {
    for (const bool in_place : {false, true}) {
      Regions regions(ranks, sizes.back() * std::int64_t{sizeof(T)});
      const int wrong =
          wrong_of_all<T>(ranks, regions, sizes.back() + 1, in_place, [&](int rank, Summing<T>& summing) {
            std::uint32_t use = 0;
            for (const std::int64_t n : sizes) {
              ++use;
              summing.start(use, n, 0);
              ++use;
              summing.start(use, n, (use / 2 + static_cast<std::uint32_t>(rank)) % 2);  // aligned on some
              summing.finish();
            }
          });
      EXPECT_EQ(wrong, 0) << ranks << " ranks, in place " << in_place;
    }
  }
}

// Counts begin shortly before they wrap around.
TYPED_TEST(AllReduceSmall, ManyUsesWhileSomeAreLate) {
  using T = TypeParam;
  constexpr std::int64_t kLargest = 40000;
  for (const int ranks : {2, 3, 4, 8}) {
    if (ranks > most_ranks()) continue;
    const std::uint32_t uses = ranks == 8 ? 2000 : 3000;
    Regions regions(ranks, kLargest * std::int64_t{sizeof(T)}, 0u - 1500u);
    const int wrong = wrong_of_all<T>(ranks, regions, kLargest, true, [&](int rank, Summing<T>& summing) {
      std::mt19937 all(7), own(static_cast<std::uint32_t>(rank));
      for (std::uint32_t use = 1; use <= uses; ++use) {
        const std::int64_t most = all() % 50 == 0 ? kLargest : (all() % 8 == 0 ? 5000 : 70);
        const std::int64_t n = 1 + static_cast<std::int64_t>(all()) % most;
        if (own() % 16 == 0) std::this_thread::sleep_for(std::chrono::microseconds(own() % 300));
        summing.start(use, n, 0);
        if (summing.full() || use == uses) summing.finish();
      }
    });
    EXPECT_EQ(wrong, 0) << ranks << " ranks";
  }
}

TYPED_TEST(AllReduceSmall, RecordedOnceItRunsAgain) {
  using T = TypeParam;
  if (!on_gpu()) GTEST_SKIP() << "a GPU records";
  load_code<T>();
  constexpr int kRanks = 3;
  constexpr std::int64_t kCount = 5000;
  Regions regions(kRanks, kCount * std::int64_t{sizeof(T)});
  std::vector<Memory<T>> x(kRanks, Memory<T>(kCount)), y(kRanks, Memory<T>(kCount));
  stream_of(kRanks - 1);
  std::array<ridge::cuda::Graph, kRanks> graphs;
  for (std::size_t r = 0; r < kRanks; ++r) {
    Stream& stream = stream_of(static_cast<int>(r));
    graphs[r].record(stream, [&] {  // three sums in each replay: slots take turns
      const SmallSumRanks ranks = regions.of(static_cast<int>(r));
      for (int i = 0; i < 3; ++i)
        all_reduce_small<T>(stream, ranks, View<const T>(x[r].data(), {kCount}),
                            View<T>(y[r].data(), {kCount}));
    });
  }
  for (std::uint32_t use = 1; use <= 200; ++use) {
    for (std::size_t r = 0; r < kRanks; ++r) {
      for (std::size_t i = 0; i < kCount; ++i)
        x[r][i] = value_of<T>(static_cast<int>(r), use, static_cast<std::int64_t>(i));
      std::fill(y[r].begin(), y[r].end(), T());
    }
    for (std::size_t r = 0; r < kRanks; ++r) graphs[r].launch(stream_of(static_cast<int>(r)));
    for (int r = 0; r < kRanks; ++r) ridge::cuda::synchronize(stream_of(r));
    for (std::size_t r = 0; r < kRanks; ++r)
      ASSERT_EQ(wrong_sums(kRanks, use, y[r].data(), kCount), 0) << "replay " << use << ", rank " << r;
  }
}

TEST(AllReduceSmallRanks, OneThatNeverComesIsNamed) {
  if (on_gpu()) GTEST_SKIP() << "ends this process's GPU; OneShotReduce tests it";
  Regions regions(3, 256);
  std::vector<float> x(64);
  const View<float> view(x.data(), {64});
  try {
    std::thread other([&] {
      EXPECT_THROW(all_reduce_small<float>(test_stream(), regions.of(1), view, view, SmallSumEnd::store,
                                           std::chrono::seconds(2)),
                   Error);
    });
    std::vector<float> mine(64);
    const View<float> own(mine.data(), {64});
    const auto join = std::shared_ptr<void>(nullptr, [&](void*) { other.join(); });
    all_reduce_small<float>(test_stream(), regions.of(0), own, own, SmallSumEnd::store,
                            std::chrono::seconds(2));
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("rank 2 did not come to it within 2 s"), std::string::npos)
        << error.what();
  }
}

TEST(AllReduceSmallRanks, WhatDoesNotFitIsAnError) {
  Regions regions(2, 64);
  std::vector<float> x(5000);
  const auto sum = [&](const SmallSumRanks& ranks, std::int64_t n) {
    all_reduce_small<float>(test_stream(), ranks, View<const float>(x.data(), {n}),
                            View<float>(x.data(), {n}));
  };
  EXPECT_THROW(sum(regions.of(0), 5000), Error);
  SmallSumRanks nine = regions.of(0);
  nine.size = 9;
  EXPECT_THROW(sum(nine, 4), Error);
  EXPECT_NO_THROW(sum(regions.of(0), 0));  // waits for nobody
  const View<float> both(x.data(), {4});
  EXPECT_THROW(all_reduce_small<float>(test_stream(), regions.of(0), both, both, SmallSumEnd::add), Error);
}

TEST(AllReduceSmallRanks, MetaCountsTheWork) {
  Stream meta(Device::meta, "meta");
  meta.meta_ceilings = {1e30, 1e9, 1e9};
  SmallSumRanks ranks;
  ranks.size = 4;
  ranks.layout = Layout::of(1 << 20);
  all_reduce_small<float>(meta, ranks, View<const float>(nullptr, {1000}), View<float>(nullptr, {1000}));
  EXPECT_NEAR(meta.virtual_seconds, 5 * 4000 / 1e9, 1e-9);
}

TEST(SmallSumLayout, EveryPackBelongsToOneChannelThatHasRoom) {
  for (const std::int64_t most : {1, 255, 256, 257, 300, 511, 8191, 8192, 8193, 70000}) {
    const Layout layout = Layout::of(most * small_sum::kPack);
    for (std::int64_t packs = 1; packs <= most; packs += 1 + packs / 97) {
      const Cut cut = Cut::of(packs);
      ASSERT_LE(cut.channels, small_sum::kChannels);
      std::int64_t end = 0;
      for (int c = 0; c < cut.channels; ++c) {
        ASSERT_EQ(cut.begin(c), end);
        ASSERT_GE(cut.count(c), 0);
        ASSERT_LE(cut.count(c), layout.slot_packs) << packs << " of " << most;
        end += cut.count(c);
      }
      ASSERT_EQ(end, packs);
      if (!small_sum::is_pushed(packs)) continue;
      ASSERT_LE(cut.channels, small_sum::kPushChannels);
      for (int c = 0; c < cut.channels; ++c) {  // every channel hears of every rank
        ASSERT_GE(cut.count(c), 1) << packs;
        ASSERT_LE(cut.count(c), layout.push_packs()) << packs << " of " << most;
      }
    }
  }
}

TEST(SmallSumLayout, NothingOverlaps) {
  const Layout layout = Layout::of(100 * small_sum::kPack);
  std::vector<int> owners(static_cast<std::size_t>(layout.bytes()));
  const auto own = [&](std::int64_t begin, std::int64_t bytes) {
    ASSERT_LE(begin + bytes, layout.bytes());
    for (std::int64_t i = begin; i < begin + bytes; ++i) ++owners[static_cast<std::size_t>(i)];
  };
  for (int c = 0; c < small_sum::kChannels; ++c) {
    own(4 * Layout::use_word(c), 4);
    for (int r = 0; r < small_sum::kMostRanks; ++r) own(4 * Layout::flag_word(c, r), 4);
    for (const std::uint32_t use : {1u, 2u}) {
      EXPECT_EQ(layout.slot_byte(c, use) % small_sum::kPack, 0);
      EXPECT_EQ(layout.slot_byte(c, use), layout.slot_byte(c, use + 2));
      own(layout.slot_byte(c, use), layout.slot_packs * small_sum::kPack);
      for (int r = 0; r < small_sum::kMostRanks && c < small_sum::kPushChannels; ++r) {
        EXPECT_EQ(layout.push_byte(c, use, r) % small_sum::kPack, 0);
        EXPECT_EQ(layout.push_byte(c, use, r), layout.push_byte(c, use + 2, r));
        own(layout.push_byte(c, use, r), layout.push_packs() * small_sum::kPushed);
      }
    }
  }
  EXPECT_EQ(*std::max_element(owners.begin(), owners.end()), 1);
}

TEST(SmallSumLayout, CountsWrapAround) {
  for (const std::uint32_t use : {1u, 2u, 0x7FFFFFFFu, 0x80000000u, 0xFFFFFFFFu, 0u}) {
    EXPECT_FALSE(small_sum::has_come(use - 1, use));
    EXPECT_TRUE(small_sum::has_come(use, use));
    EXPECT_TRUE(small_sum::has_come(use + 1, use));
    EXPECT_NE(small_sum::mark_of(use), 0u);
    for (const std::uint32_t before : {1u, 2u, 4u, 0x7FFFFFFEu})
      EXPECT_NE(small_sum::mark_of(use), small_sum::mark_of(use - before));
  }
}

}  // namespace
}  // namespace ridge::kernels
