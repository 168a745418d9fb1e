// Columns of ranks that are threads, side by side.
#include "kernels/all_gather_small.h"

#include <array>
#include <random>

#include "core/base/error.h"
#include "tests/kernels/rank_threads.h"

namespace ridge::kernels {
namespace {

using namespace testing;

struct Case {
  std::int64_t rows, columns;
};

// {first, end} of a rank's columns, counted one by one.
std::pair<std::int64_t, std::int64_t> held_by(int rank, int ranks, std::int64_t columns) {
  std::int64_t each = 0;
  while (each * ranks < columns) ++each;
  return {std::min(columns, rank * each), std::min(columns, (rank + 1) * each)};
}

/// Each rank's own columns of the matrix of one use, and noise elsewhere.
template <class T>
void fill_own(T* y, const Case& c, int rank, int ranks, std::uint32_t use) {
  const auto [begin, end] = held_by(rank, ranks, c.columns);
  for (std::int64_t i = 0; i < c.rows * c.columns; ++i) {
    const bool own = i % c.columns >= begin && i % c.columns < end;
    y[i] = value_of<T>(own ? 100 : rank, use, i);
  }
}
template <class T>
int wrong_elements(const T* y, const Case& c, std::uint32_t use) {
  int wrong = 0;
  for (std::int64_t i = 0; i < c.rows * c.columns; ++i) {
    const T want = value_of<T>(100, use, i);
    wrong += std::memcmp(&want, y + i, sizeof(T)) == 0 ? 0 : 1;
  }
  return wrong;
}

template <class T>
void load_code() {
  if (!on_gpu()) return;
  Regions one(1, 64);
  Array<T> y({1, 1});
  all_gather_small<T>(test_stream(), one.of(0), y.view());
  all_reduce_small<T>(test_stream(), one.of(0), y.in(), y.view());
  wait_for_device();
}

template <class T>
class AllGatherSmall : public ::testing::Test {};
using Types = ::testing::Types<float, bf16>;
TYPED_TEST_SUITE(AllGatherSmall, Types);

// Sums go between, over the same regions; some ranks are late.
TYPED_TEST(AllGatherSmall, EveryRankHasAllColumns) {
  using T = TypeParam;
  const std::vector<Case> cases{{1, 1}, {1, 64}, {3, 67}, {2, 5}, {5, 96}, {4, 1000}, {1, 32003}, {7, 4096}};
  load_code<T>();
  for (int ranks = 1; ranks <= most_ranks(); ++ranks) {
    Regions regions(ranks, 32768 * std::int64_t{sizeof(T)}, 0u - 5u);
    std::vector<Memory<T>> y, x;
    for (int r = 0; r < ranks; ++r) {
      y.emplace_back(std::size_t{40000});
      x.emplace_back(std::size_t{300});
    }
    stream_of(ranks - 1);
    std::vector<int> wrong(static_cast<std::size_t>(ranks));
    run_threads(ranks, [&](int rank) {
      const auto me = static_cast<std::size_t>(rank);
      Stream& stream = stream_of(rank);
      std::mt19937 own(static_cast<std::uint32_t>(rank));
      std::uint32_t use = 0;
      for (int round = 0; round < 6; ++round) {
        for (const Case& c : cases) {
          // Regions have room for one rank's part.
          if (c.rows * ((c.columns + ranks - 1) / ranks) > 32768) continue;
          const std::int64_t offset = round % 2;  // alignment
          fill_own(y[me].data() + offset, c, rank, ranks, ++use);
          std::fill(x[me].begin(), x[me].end(), static_cast<T>(1.0F));
          if (own() % 4 == 0) std::this_thread::sleep_for(std::chrono::microseconds(own() % 500));
          const SmallSumRanks at = regions.of(rank);
          all_gather_small<T>(stream, at, View<T>(y[me].data() + offset, {c.rows, c.columns}),
                              std::chrono::seconds(100));
          all_reduce_small<T>(stream, at, View<const T>(x[me].data(), {300}), View<T>(x[me].data(), {300}),
                              SmallSumEnd::store, std::chrono::seconds(100));
          if (on_gpu()) ridge::cuda::synchronize(stream);
          wrong[me] += wrong_elements(y[me].data() + offset, c, use);
          for (const T& v : x[me]) wrong[me] += static_cast<float>(v) == static_cast<float>(ranks) ? 0 : 1;
        }
      }
    });
    for (int r = 0; r < ranks; ++r)
      EXPECT_EQ(wrong[static_cast<std::size_t>(r)], 0) << "rank " << r << " of " << ranks;
  }
}

TYPED_TEST(AllGatherSmall, RecordedOnceItRunsAgain) {
  using T = TypeParam;
  if (!on_gpu()) GTEST_SKIP() << "a GPU records";
  load_code<T>();
  constexpr int kRanks = 3;
  constexpr Case kCase{3, 1001};
  Regions regions(kRanks, 2048 * std::int64_t{sizeof(T)});
  std::vector<Memory<T>> y(kRanks, Memory<T>(kCase.rows * kCase.columns));
  stream_of(kRanks - 1);
  std::array<ridge::cuda::Graph, kRanks> graphs;
  for (std::size_t r = 0; r < kRanks; ++r) {
    Stream& stream = stream_of(static_cast<int>(r));
    graphs[r].record(stream, [&] {
      all_gather_small<T>(stream, regions.of(static_cast<int>(r)),
                          View<T>(y[r].data(), {kCase.rows, kCase.columns}));
    });
  }
  for (std::uint32_t use = 1; use <= 100; ++use) {
    for (std::size_t r = 0; r < kRanks; ++r) fill_own(y[r].data(), kCase, static_cast<int>(r), kRanks, use);
    for (std::size_t r = 0; r < kRanks; ++r) graphs[r].launch(stream_of(static_cast<int>(r)));
    for (int r = 0; r < kRanks; ++r) ridge::cuda::synchronize(stream_of(r));
    for (std::size_t r = 0; r < kRanks; ++r)
      ASSERT_EQ(wrong_elements(y[r].data(), kCase, use), 0) << "replay " << use << ", rank " << r;
  }
}

TEST(AllGatherSmallRanks, WhatDoesNotFitIsAnError) {
  Regions regions(2, 64);
  std::vector<float> y(20000);
  const auto gather = [&](const SmallSumRanks& ranks, const View<float>& view) {
    all_gather_small<float>(test_stream(), ranks, view);
  };
  EXPECT_THROW(gather(regions.of(0), View<float>(y.data(), {2, 10000})), Error);
  EXPECT_THROW(gather(regions.of(0), View<float>(y.data(), {2, 4}, {8, 1})), Error);
  EXPECT_THROW(gather(regions.of(0), View<float>(y.data(), {8})), Error);
  SmallSumRanks nine = regions.of(0);
  nine.size = 9;
  EXPECT_THROW(gather(nine, View<float>(y.data(), {1, 9})), Error);
  EXPECT_NO_THROW(gather(regions.of(0), View<float>(y.data(), {0, 9})));  // waits for nobody
}

TEST(AllGatherSmallRanks, MetaCountsTheWork) {
  Stream meta(Device::meta, "meta");
  meta.meta_ceilings = {1e30, 1e9, 1e9};
  SmallSumRanks ranks;
  ranks.size = 4;
  ranks.layout = small_sum::Layout::of(1 << 20);
  all_gather_small<float>(meta, ranks, View<float>(nullptr, {2, 500}));
  EXPECT_NEAR(meta.virtual_seconds, 2 * 4000 / 1e9, 1e-9);
}

}  // namespace
}  // namespace ridge::kernels
