#include "parallel/communicator.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <thread>

#include "core/base/error.h"
#include "tests/parallel/collectives.h"

namespace ridge::parallel {
namespace {

class Threads : public ::testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(Sizes, Threads, ::testing::Range(1, 9));

// A value that every rank can compute of every other: not a multiple, so that sums of floats round.
template <class T>
T element(int rank, std::size_t i) {
  if constexpr (std::is_integral_v<T>)
    return static_cast<T>(((rank + 3) * 1000003) ^ static_cast<int>(i)) - 1500000;
  return static_cast<T>(std::sin(1.0 + rank * 7.0 + static_cast<double>(i)));
}

template <class T>
std::vector<T> mine(int rank, std::size_t count) {
  std::vector<T> values(count);
  for (std::size_t i = 0; i < count; ++i) values[i] = element<T>(rank, i);
  return values;
}

template <class T>
void expect_sums_and_maxima(Communicator& ranks, std::size_t count) {
  std::vector<T> sum = mine<T>(ranks.rank(), count), most = sum, later = sum;
  ranks.all_reduce(std::span<T>(sum));
  ranks.all_reduce(std::span<T>(most), Reduce::max);
  const auto pending = ranks.all_reduce_async(std::span<T>(later));
  pending->wait();
  for (std::size_t i = 0; i < count; ++i) {
    T want = element<T>(0, i), greatest = want;
    for (int r = 1; r < ranks.size(); ++r) {
      want = static_cast<T>(want + element<T>(r, i));  // in the order of ranks: the same bits
      greatest = std::max(greatest, element<T>(r, i));
    }
    ASSERT_EQ(sum[i], want) << "element " << i;
    ASSERT_EQ(most[i], greatest) << "element " << i;
    ASSERT_EQ(later[i], want) << "element " << i;
  }
}

TEST_P(Threads, AllReduceOfEveryType) {
  run_ranks(GetParam(), [](Communicator& ranks) {
    for (const std::size_t count : {0, 1, 7, 10000}) {
      expect_sums_and_maxima<float>(ranks, count);
      expect_sums_and_maxima<double>(ranks, count);
      expect_sums_and_maxima<std::int64_t>(ranks, count);
    }
  });
}

TEST_P(Threads, EveryCollectiveOfEveryType) {
  run_ranks(GetParam(), [](Communicator& ranks) { test::expect_collectives(ranks, Device::cpu); });
}

// 1 + 2^-8 + 2^-8 would stay 1 if each step were rounded.
TEST_P(Threads, SumsOfBf16AreRoundedOnce) {
  run_ranks(GetParam(), [](Communicator& ranks) {
    bf16 value(ranks.rank() == 0 ? 1.0f : 0x1p-8f);
    ranks.all_reduce(std::span<bf16>(&value, 1));
    EXPECT_EQ(static_cast<float>(value),
              static_cast<float>(bf16(1 + 0x1p-8f * static_cast<float>(ranks.size() - 1))));
  });
}

TEST_P(Threads, MetaMovesNothing) {
  std::atomic<int> passed{0};
  run_ranks(GetParam(), [&](Communicator& ranks) {
    if (ranks.rank() > 0) return;  // nobody is waited for
    const std::size_t all = 4 * static_cast<std::size_t>(ranks.size());
    const DeviceSpan<float> mine{nullptr, 4, Device::meta}, whole{nullptr, all, Device::meta};
    const DeviceSpan<const float> my_view{nullptr, 4, Device::meta}, whole_view{nullptr, all, Device::meta};
    ranks.all_reduce(whole);
    ranks.all_reduce_async(whole)->wait();
    ranks.all_gather(my_view, whole);
    ranks.all_gather_async(my_view, whole)->wait();
    ranks.reduce_scatter(whole_view, mine);
    ranks.broadcast(whole, 0);
    ++passed;
  });
  EXPECT_EQ(passed.load(), 1);
}

TEST_P(Threads, MemoryOfAGpuIsRefused) {
  const DeviceSpan<float> values{nullptr, 4, Device::cuda};
  EXPECT_THROW(run_ranks(GetParam(), [&](Communicator& ranks) { ranks.all_reduce(values); }), Error);
  EXPECT_THROW(run_ranks(GetParam(), [&](Communicator& ranks) { ranks.broadcast(values, 0); }), Error);
}

TEST_P(Threads, PiecesThatDoNotFitAreAnError) {
  const auto body = [](Communicator& ranks) {
    std::vector<float> piece(3), all(3 * static_cast<std::size_t>(ranks.size()) + 1);
    ranks.reduce_scatter(std::span<const float>(all), std::span<float>(piece));
  };
  EXPECT_THROW(run_ranks(GetParam(), body), Error);
  const auto devices = [](Communicator& ranks) {
    const auto all = 3 * static_cast<std::size_t>(ranks.size());
    ranks.all_gather(DeviceSpan<const float>{nullptr, 3, Device::cpu},
                     DeviceSpan<float>{nullptr, all, Device::meta});
  };
  EXPECT_THROW(run_ranks(GetParam(), devices), Error);
}

TEST_P(Threads, ARootOutsideTheGroupIsAnError) {
  for (const int root : {-1, GetParam()}) {
    EXPECT_THROW(run_ranks(GetParam(),
                           [&](Communicator& ranks) {
                             float value = 1;
                             ranks.broadcast(std::span<float>(&value, 1), root);
                           }),
                 Error);
  }
}

TEST_P(Threads, RanksAreNumberedAndCountTheSame) {
  std::vector<std::atomic<int>> seen(static_cast<std::size_t>(GetParam()));
  run_ranks(GetParam(), [&](Communicator& ranks) {
    EXPECT_EQ(ranks.size(), GetParam());
    ++seen[static_cast<std::size_t>(ranks.rank())];
  });
  for (const auto& times : seen) EXPECT_EQ(times.load(), 1);
}

TEST_P(Threads, AllGatherPutsPiecesByRank) {
  run_ranks(GetParam(), [](Communicator& ranks) {
    constexpr std::size_t kCount = 11;
    const std::vector<std::int64_t> piece = mine<std::int64_t>(ranks.rank(), kCount);
    std::vector<std::int64_t> all(kCount * static_cast<std::size_t>(ranks.size()), -1);
    ranks.all_gather(std::span<const std::int64_t>(piece), std::span<std::int64_t>(all));
    for (int r = 0; r < ranks.size(); ++r) {
      for (std::size_t i = 0; i < kCount; ++i)
        ASSERT_EQ(all[static_cast<std::size_t>(r) * kCount + i], element<std::int64_t>(r, i));
    }
  });
}

TEST_P(Threads, AllGatherIntoAWrongExtentIsAnError) {
  const auto body = [](Communicator& ranks) {
    const std::vector<float> piece(3);
    std::vector<float> all(3 * static_cast<std::size_t>(ranks.size()) + 1);
    ranks.all_gather(std::span<const float>(piece), std::span<float>(all));
  };
  EXPECT_THROW(run_ranks(GetParam(), body), Error);
}

TEST_P(Threads, BroadcastFromEveryRoot) {
  run_ranks(GetParam(), [](Communicator& ranks) {
    for (int root = 0; root < ranks.size(); ++root) {
      std::vector<double> values = mine<double>(ranks.rank(), 13);
      ranks.broadcast(std::span<double>(values), root);
      EXPECT_EQ(values, mine<double>(root, 13));
    }
  });
}

TEST_P(Threads, NobodyPassesABarrierBeforeAllCame) {
  std::atomic<int> came{0};
  run_ranks(GetParam(), [&](Communicator& ranks) {
    for (int round = 1; round <= 20; ++round) {
      if (ranks.rank() == round % ranks.size()) std::this_thread::sleep_for(std::chrono::microseconds(200));
      ++came;
      ranks.barrier();
      EXPECT_GE(came.load(), round * ranks.size());
      ranks.barrier();
    }
  });
  EXPECT_EQ(came.load(), 20 * GetParam());
}

TEST_P(Threads, SeveralAsyncReductionsInARow) {
  run_ranks(GetParam(), [](Communicator& ranks) {
    std::vector<std::vector<float>> buckets;
    for (std::size_t b = 0; b < 5; ++b) buckets.push_back(std::vector<float>(b + 1, static_cast<float>(b)));
    std::vector<std::unique_ptr<Pending>> pending;
    for (auto& bucket : buckets) pending.push_back(ranks.all_reduce_async(std::span<float>(bucket)));
    for (auto it = pending.rbegin(); it != pending.rend(); ++it) (*it)->wait();
    for (std::size_t b = 0; b < 5; ++b)
      EXPECT_EQ(buckets[b],
                std::vector<float>(b + 1, static_cast<float>(b) * static_cast<float>(ranks.size())));
  });
}

TEST_P(Threads, ANaNOnAnyRankReachesAll) {
  run_ranks(GetParam(), [](Communicator& ranks) {
    float value = ranks.rank() == ranks.size() - 1 ? std::numeric_limits<float>::quiet_NaN() : 1.0f;
    ranks.all_reduce(std::span<float>(&value, 1));
    EXPECT_TRUE(std::isnan(value));
  });
}

TEST_P(Threads, TheFirstErrorStopsAllAndComesBack) {
  const int bad = GetParam() - 1;
  std::atomic<int> finished{0};
  const auto body = [&](Communicator& ranks) {
    float value = 1;
    ranks.all_reduce(std::span<float>(&value, 1));
    if (ranks.rank() == bad) fail_user("rank {} has had enough", bad);
    ranks.all_reduce(std::span<float>(&value, 1));
    ++finished;
  };
  try {
    run_ranks(GetParam(), body);
    FAIL() << "no error";
  } catch (const UserError& error) {
    EXPECT_EQ(error.what(), fmt::format("rank {} has had enough", bad));
  }
  EXPECT_EQ(finished.load(), 0);
}

TEST_P(Threads, AnErrorOfAnyKindComesBack) {
  EXPECT_THROW(run_ranks(GetParam(),
                         [](Communicator& ranks) {
                           if (ranks.rank() == 0) throw 7;
                           ranks.barrier();
                         }),
               int);
}

TEST(Threads, AbortEndsThoseWhoWait) {
  const auto body = [](Communicator& ranks) {
    if (ranks.rank() == 0) {
      ranks.abort("out of paper", 1);
      return;
    }
    ranks.barrier();
  };
  try {
    run_ranks(3, body);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("out of paper"), std::string::npos) << error.what();
  }
}

TEST(Threads, AGroupOfNoneIsAnError) {
  EXPECT_THROW(run_ranks(0, [](Communicator&) {}), Error);
}

TEST(Self, EveryCollectiveIsTheIdentity) {
  const auto self = self_communicator();
  test::expect_collectives(*self, Device::cpu);
  EXPECT_EQ(self->rank(), 0);
  EXPECT_EQ(self->size(), 1);
  self->barrier();
  const std::vector<float> want = mine<float>(0, 9);
  std::vector<float> values = want;
  self->all_reduce(std::span<float>(values));
  self->all_reduce(std::span<float>(values), Reduce::max);
  self->all_reduce_async(std::span<float>(values))->wait();
  self->broadcast(std::span<float>(values), 0);
  EXPECT_EQ(values, want);
  std::vector<float> all(9);
  self->all_gather(std::span<const float>(values), std::span<float>(all));
  EXPECT_EQ(all, want);
  EXPECT_THROW(self->broadcast(std::span<float>(values), 1), Error);
  std::vector<float> more(10);
  EXPECT_THROW(self->all_gather(std::span<const float>(values), std::span<float>(more)), Error);
}

}  // namespace
}  // namespace ridge::parallel
