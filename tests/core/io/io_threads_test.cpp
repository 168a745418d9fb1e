#include "core/io/io_threads.h"

#include <gtest/gtest.h>

#include <atomic>
#include <mutex>
#include <set>
#include <stdexcept>
#include <thread>
#include <vector>

namespace ridge {
namespace {

TEST(IoThreads, EveryIndexRunsOnceOnANumberedThread) {
  for (const int threads : {1, 3, 40}) {
    std::vector<std::atomic<int>> runs(100);
    std::mutex mutex;
    std::set<std::pair<int, std::thread::id>> seen;
    run_on_io_threads(threads, 100, [&](int thread, std::int64_t i) {
      ++runs[static_cast<std::size_t>(i)];
      const std::lock_guard lock(mutex);
      EXPECT_TRUE(thread >= 0 && thread < threads);
      seen.emplace(thread, std::this_thread::get_id());
    });
    for (const auto& count : runs) EXPECT_EQ(count, 1);
    std::set<int> numbers;
    for (const auto& [number, id] : seen)
      EXPECT_TRUE(numbers.insert(number).second) << "a number is one thread's";
  }
  run_on_io_threads(4, 0, [](int, std::int64_t) { ADD_FAILURE(); });
}

TEST(IoThreads, RunAtTheSameTime) {
  std::atomic<int> arrived{0};
  run_on_io_threads(3, 3, [&](int, std::int64_t) {
    ++arrived;
    while (arrived < 3) std::this_thread::yield();  // for ever, were there fewer threads
  });
  EXPECT_EQ(arrived, 3);
}

TEST(IoThreads, TheFirstExceptionEndsTheRest) {
  std::atomic<int> runs{0};
  const auto body = [&](int, std::int64_t i) {
    ++runs;
    if (i == 5) throw std::runtime_error("five");
  };
  try {
    run_on_io_threads(1, 1000, body);
    ADD_FAILURE() << "nothing was thrown";
  } catch (const std::runtime_error& error) {
    EXPECT_STREQ(error.what(), "five");
  }
  EXPECT_EQ(runs, 6);
  EXPECT_THROW(run_on_io_threads(4, 1000, body), std::runtime_error);
}

TEST(IoThreads, AreSome) { EXPECT_GE(io_thread_count(), 1); }

}  // namespace
}  // namespace ridge
