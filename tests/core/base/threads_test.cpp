#include "core/base/threads.h"

#include <gtest/gtest.h>

#include <atomic>
#include <numeric>
#include <thread>
#include <vector>

#include "core/base/error.h"

namespace ridge {
namespace {

struct ThreadsScope {
  int before = thread_count();
  explicit ThreadsScope(int count) { set_thread_count(count); }
  ~ThreadsScope() { set_thread_count(before); }
};

TEST(ParallelFor, CoversEveryIndexOnce) {
  for (const int threads : {1, 2, 5}) {
    const ThreadsScope scope(threads);
    for (const std::int64_t n : {0, 1, 7, 1000}) {
      std::vector<std::atomic<int>> hits(static_cast<std::size_t>(n));
      parallel_for(n, 3, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) ++hits[static_cast<std::size_t>(i)];
      });
      for (const auto& hit : hits) EXPECT_EQ(hit.load(), 1);
    }
  }
}

TEST(ParallelFor, ManySmallJobsInARow) {
  const ThreadsScope scope(4);
  for (int job = 0; job < 20000; ++job) {
    std::atomic<std::int64_t> sum{0};
    parallel_for(8, 1, [&](std::int64_t begin, std::int64_t) { sum += begin + job; });
    ASSERT_EQ(sum.load(), 28 + 8 * job);
  }
}

TEST(ParallelFor, NestedAndConcurrentCallsFinish) {
  const ThreadsScope scope(3);
  std::atomic<int> count{0};
  const auto nested = [&] {
    for (int i = 0; i < 200; ++i) {
      parallel_for(4, 1, [&](std::int64_t, std::int64_t) {
        parallel_for(3, 1, [&](std::int64_t, std::int64_t) { ++count; });
      });
    }
  };
  std::thread other(nested);
  nested();
  other.join();
  EXPECT_EQ(count.load(), 2 * 200 * 12);
}

TEST(ParallelFor, TheFirstExceptionComesBackAfterAllChunks) {
  const ThreadsScope scope(3);
  std::atomic<int> ran{0};
  const auto body = [&](std::int64_t begin, std::int64_t) {
    ++ran;
    if (begin == 5) fail("chunk {}", begin);
  };
  EXPECT_THROW(parallel_for(20, 1, body), Error);
  EXPECT_EQ(ran.load(), 20);
  EXPECT_NO_THROW(parallel_for(3, 1, [](std::int64_t, std::int64_t) {}));
}

}  // namespace
}  // namespace ridge
