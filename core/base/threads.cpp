#include "core/base/threads.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include "core/base/error.h"

namespace ridge {
namespace {

constexpr int kSpins = 20000;  // about 50 us: the gap between two kernels of one step

int available_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) != 0) return std::max(1u, std::thread::hardware_concurrency());
  return std::max(1, CPU_COUNT(&set));
}

struct Job {
  std::int64_t n = 0;
  std::int64_t grain = 1;
  detail::RangeFn fn = nullptr;
  const void* body = nullptr;

  std::int64_t chunks() const { return (n + grain - 1) / grain; }
  void run(std::int64_t chunk) const { fn(body, chunk * grain, std::min(n, (chunk + 1) * grain)); }
};

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  std::this_thread::yield();
#endif
}

class Pool {
 public:
  static Pool& instance() {
    static Pool pool;
    return pool;
  }

  ~Pool() { stop(); }

  int count() const { return count_.load(std::memory_order_relaxed); }

  void resize(int count) {
    check(count >= 1, "at least one thread");
    const std::lock_guard lock(owner_);
    stop();
    count_ = count;
  }

  /// False where another thread owns the pool: the caller then runs the job itself.
  bool try_run(const Job& job) {
    const std::unique_lock lock(owner_, std::try_to_lock);
    if (!lock.owns_lock()) return false;
    start();
    job_ = job;
    next_.store(0, std::memory_order_relaxed);
    pending_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
    publish();
    work();
    wait_for_workers();
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
    return true;
  }

 private:
  void publish() {
    {
      const std::lock_guard lock(mutex_);
      generation_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
  }

  void wait_for_workers() {
    for (int spin = 0; pending_.load(std::memory_order_acquire) != 0; ++spin) {
      if (spin < kSpins) {
        pause();
      } else {
        std::this_thread::yield();
      }
    }
  }

  void work() {
    const std::int64_t chunks = job_.chunks();
    for (;;) {
      const std::int64_t chunk = next_.fetch_add(1, std::memory_order_relaxed);
      if (chunk >= chunks) return;
      try {
        job_.run(chunk);
      } catch (...) {
        const std::lock_guard lock(mutex_);
        if (!error_) error_ = std::current_exception();
      }
    }
  }

  std::uint64_t wait_for_job(std::uint64_t seen) {
    for (int spin = 0; spin < kSpins; ++spin) {
      const std::uint64_t now = generation_.load(std::memory_order_acquire);
      if (now != seen) return now;
      pause();
    }
    std::unique_lock lock(mutex_);
    wake_.wait(lock, [&] { return generation_.load(std::memory_order_acquire) != seen; });
    return generation_.load(std::memory_order_acquire);
  }

  void worker_main(std::uint64_t seen) {
    inside_worker() = true;
    for (;;) {
      seen = wait_for_job(seen);
      if (stopping_.load(std::memory_order_acquire)) return;
      work();
      pending_.fetch_sub(1, std::memory_order_release);
    }
  }

  void start() {
    while (static_cast<int>(workers_.size()) < count() - 1) {
      workers_.emplace_back([this, seen = generation_.load()] { worker_main(seen); });
    }
  }

  void stop() {
    stopping_.store(true, std::memory_order_release);
    publish();
    for (std::thread& worker : workers_) worker.join();
    workers_.clear();
    stopping_.store(false, std::memory_order_release);
  }

 public:
  static bool& inside_worker() {
    static thread_local bool inside = false;
    return inside;
  }

 private:
  std::atomic<int> count_{available_cores()};
  std::mutex owner_;  // held by the thread whose job runs
  std::mutex mutex_;  // guards sleeping workers and error_
  std::condition_variable wake_;
  std::vector<std::thread> workers_;
  Job job_;
  std::exception_ptr error_;
  std::atomic<std::uint64_t> generation_{0};
  std::atomic<std::int64_t> next_{0};
  std::atomic<int> pending_{0};
  std::atomic<bool> stopping_{false};
};

struct NestedScope {
  bool& inside = Pool::inside_worker();
  bool before = inside;
  NestedScope() { inside = true; }
  ~NestedScope() { inside = before; }
};

}  // namespace

int thread_count() { return Pool::instance().count(); }

void set_thread_count(int count) { Pool::instance().resize(count); }

void detail::run_chunks(std::int64_t n, std::int64_t grain, RangeFn fn, const void* body) {
  const Job job{n, grain, fn, body};
  const std::int64_t chunks = job.chunks();
  if (chunks > 1 && thread_count() > 1 && !Pool::inside_worker()) {
    const NestedScope scope;
    if (Pool::instance().try_run(job)) return;
  }
  for (std::int64_t chunk = 0; chunk < chunks; ++chunk) job.run(chunk);
}

}  // namespace ridge
