#include "core/io/io_threads.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "core/base/threads.h"

namespace ridge {
namespace {

constexpr int kMostThreads = 8;  // a few saturate a disk, and nearly the page cache

}  // namespace

int io_thread_count() { return std::clamp(thread_count(), 1, kMostThreads); }

void run_on_io_threads(int threads, std::int64_t n,
                       const std::function<void(int thread, std::int64_t i)>& body) {
  std::atomic<std::int64_t> next{0};
  std::mutex mutex;
  std::exception_ptr failure;
  const auto work = [&](int thread) {
    try {
      for (std::int64_t i = next++; i < n; i = next++) body(thread, i);
    } catch (...) {
      next = n;
      const std::lock_guard lock(mutex);
      if (!failure) failure = std::current_exception();
    }
  };
  std::vector<std::thread> others;
  const auto wanted = static_cast<int>(std::min<std::int64_t>(threads, n));
  for (int thread = 1; thread < wanted; ++thread) others.emplace_back(work, thread);
  work(0);
  for (std::thread& other : others) other.join();
  if (failure) std::rethrow_exception(failure);
}

}  // namespace ridge
