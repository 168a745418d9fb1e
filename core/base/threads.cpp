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

constexpr int kSpins = 4000;  // some tens of microseconds: the gap between two kernels of one step

int available_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) != 0) {
    return static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  }
  return std::max(1, CPU_COUNT(&set));
}

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  std::this_thread::yield();
#endif
}

struct Job {
  std::int64_t n = 0;
  std::int64_t grain = 1;
  detail::RangeFn fn = nullptr;
  const void* body = nullptr;

  std::int64_t chunks() const { return (n + grain - 1) / grain; }
  void run(std::int64_t chunk) const { fn(body, chunk * grain, std::min(n, (chunk + 1) * grain)); }
};

// The job that is on offer. A ticket is (number of the job, next chunk); whoever raises it by one owns that
// chunk. The fields may be read by a thread that comes too late: they are atomics, and its ticket then fails.
class Offer {
 public:
  void open(const Job& job) {
    const std::uint64_t number = (ticket_.load(std::memory_order_relaxed) >> 32) + 1;
    ticket_.store(number << 32 | kClosed, std::memory_order_seq_cst);
    n_.store(job.n, std::memory_order_relaxed);
    grain_.store(job.grain, std::memory_order_relaxed);
    fn_.store(job.fn, std::memory_order_relaxed);
    body_.store(job.body, std::memory_order_relaxed);
    done_.store(0, std::memory_order_relaxed);
    ticket_.store(number << 32, std::memory_order_seq_cst);
  }

  bool any_left() const {
    const std::uint64_t ticket = ticket_.load(std::memory_order_acquire);
    return static_cast<std::int64_t>(ticket & kClosed) < read().chunks() && (ticket & kClosed) != kClosed;
  }

  /// Takes a chunk: false where none is left.
  bool take(Job& job, std::int64_t& chunk) {
    std::uint64_t ticket = ticket_.load(std::memory_order_acquire);
    for (;;) {
      job = read();
      chunk = static_cast<std::int64_t>(ticket & kClosed);
      if (chunk >= job.chunks() || (ticket & kClosed) == kClosed) {
        if (ticket_.load(std::memory_order_acquire) == ticket) return false;
        ticket = ticket_.load(std::memory_order_acquire);
        continue;
      }
      if (ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel)) return true;
    }
  }

  void finish_chunk() { done_.fetch_add(1, std::memory_order_acq_rel); }
  std::int64_t done() const { return done_.load(std::memory_order_acquire); }

 private:
  static constexpr std::uint64_t kClosed = 0xFFFFFFFFu;

  Job read() const {
    return {n_.load(std::memory_order_relaxed), grain_.load(std::memory_order_relaxed),
            fn_.load(std::memory_order_relaxed), body_.load(std::memory_order_relaxed)};
  }

  std::atomic<std::uint64_t> ticket_{kClosed};
  std::atomic<std::int64_t> n_{0}, grain_{1};
  std::atomic<detail::RangeFn> fn_{nullptr};
  std::atomic<const void*> body_{nullptr};
  std::atomic<std::int64_t> done_{0};
};

// The caller works too, and waits only for chunks that a worker has taken: a worker that is slow to wake
// delays nobody.
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
    offer_.open(job);
    wake();
    work();
    for (int spin = 0; offer_.done() != job.chunks(); ++spin) {
      if (spin < kSpins) {
        pause();
      } else {
        std::this_thread::yield();
      }
    }
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
    return true;
  }

  static bool& inside_worker() {
    static thread_local bool inside = false;
    return inside;
  }

 private:
  void wake() {
    if (sleepers_.load(std::memory_order_seq_cst) == 0) return;
    { const std::lock_guard lock(mutex_); }
    wake_.notify_all();
  }

  void work() {
    Job job;
    std::int64_t chunk = 0;
    while (offer_.take(job, chunk)) {
      try {
        job.run(chunk);
      } catch (...) {
        const std::lock_guard lock(mutex_);
        if (!error_) error_ = std::current_exception();
      }
      offer_.finish_chunk();
    }
  }

  bool something_to_do() const { return stopping_.load(std::memory_order_seq_cst) || offer_.any_left(); }

  void wait_for_job() {
    for (int spin = 0; spin < kSpins; ++spin) {
      if (something_to_do()) return;
      pause();
    }
    std::unique_lock lock(mutex_);
    sleepers_.fetch_add(1, std::memory_order_seq_cst);
    wake_.wait(lock, [&] { return something_to_do(); });
    sleepers_.fetch_sub(1, std::memory_order_seq_cst);
  }

  void worker_main() {
    inside_worker() = true;
    for (;;) {
      wait_for_job();
      if (stopping_.load(std::memory_order_seq_cst)) return;
      work();
    }
  }

  void start() {
    while (static_cast<int>(workers_.size()) < count() - 1) workers_.emplace_back([this] { worker_main(); });
  }

  void stop() {
    stopping_.store(true, std::memory_order_seq_cst);
    wake();
    for (std::thread& worker : workers_) worker.join();
    workers_.clear();
    stopping_.store(false, std::memory_order_seq_cst);
  }

  std::atomic<int> count_{available_cores()};
  std::mutex owner_;  // held by the thread whose job runs
  std::mutex mutex_;  // guards sleeping workers and error_
  std::condition_variable wake_;
  std::vector<std::thread> workers_;
  Offer offer_;
  std::exception_ptr error_;
  std::atomic<int> sleepers_{0};
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
