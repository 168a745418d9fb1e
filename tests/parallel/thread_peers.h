// Peers that are threads: queues run beside each other, or one after another as on a GPU that has too few of
// them, and every step of one takes a while that nobody can tell in advance.
#pragma once

#include <condition_variable>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <random>
#include <thread>

#include "core/base/error.h"
#include "parallel/peer_memory.h"

namespace ridge::test {

/// What is done once and can be waited for; it gives up after a while, as what is wrong here hangs.
class Point {
 public:
  void reach() {
    const std::lock_guard lock(mutex_);
    reached_ = true;
    changed_.notify_all();
  }
  void wait() {
    std::unique_lock lock(mutex_);
    check(changed_.wait_for(lock, std::chrono::seconds(60), [&] { return reached_; }), "a point is reached");
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool reached_ = false;
};

/// Runs what it is given, in order.
class Worker {
 public:
  explicit Worker(std::uint64_t seed) : engine_(seed), thread_([this] { run(); }) {}
  ~Worker() {
    queue(nullptr);
    thread_.join();
  }
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;

  void queue(std::function<void()> what) {
    const std::lock_guard lock(mutex_);
    queued_.push_back(std::move(what));
    changed_.notify_all();
  }
  std::shared_ptr<Point> point() {
    auto here = std::make_shared<Point>();
    queue([here] { here->reach(); });
    return here;
  }
  void follow(const std::shared_ptr<Point>& point) {
    queue([point] { point->wait(); });
  }

 private:
  void run() {
    for (;;) {
      std::function<void()> next;
      {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [&] { return !queued_.empty(); });
        next = std::move(queued_.front());
        queued_.pop_front();
      }
      if (next == nullptr) return;
      if (engine_() % 4 == 0) std::this_thread::sleep_for(std::chrono::microseconds(engine_() % 300));
      next();
    }
  }

  std::mt19937_64 engine_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> queued_;
  std::thread thread_;
};

/// The counts of one test, for all of its ranks.
class SharedFlags {
 public:
  void set(int owner, int flag, int counter, std::uint32_t count) {
    const std::lock_guard lock(mutex_);
    counts_[{owner, flag, counter}] = count;
    changed_.notify_all();
  }
  void await(int owner, int flag, int counter, std::uint32_t count) {
    std::unique_lock lock(mutex_);
    check(changed_.wait_for(lock, std::chrono::seconds(60),
                            [&] {
                              return counts_[{owner, flag, counter}] >= count;
                            }),
          "a flag is set");
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::tuple<int, int, int>, std::uint32_t> counts_;
};

class ThreadQueue final : public parallel::PeerQueue {
 public:
  // No `compute`: the caller's own thread is the compute stream. No `worker`: this is it.
  ThreadQueue(std::shared_ptr<Worker> worker, std::shared_ptr<Worker> compute, SharedFlags& flags, int rank)
      : worker_(std::move(worker)), compute_(std::move(compute)), flags_(flags), rank_(rank) {}

  void follow_compute() override {
    if (compute_ != nullptr && worker_ != compute_) worker_->follow(compute_->point());
  }
  // In two halves: who reads too early or writes too late is seen.
  void copy(void* to, const void* from, std::int64_t bytes) override {
    const auto half = static_cast<std::size_t>(bytes / 2), rest = static_cast<std::size_t>(bytes) - half;
    queue([=] { std::memcpy(to, from, half); });
    queue([=] { std::memcpy(static_cast<char*>(to) + half, static_cast<const char*>(from) + half, rest); });
  }
  void signal(int peer, int flag, std::uint32_t count) override {
    queue([=, this] { flags_.set(peer, flag, rank_, count); });
  }
  void await(int peer, int flag, std::uint32_t count) override {
    queue([=, this] { flags_.await(rank_, flag, peer, count); });
  }
  std::unique_ptr<parallel::Pending> mark(const char*) override {
    if (worker_ == nullptr) return std::make_unique<Mark>(nullptr, nullptr, false);  // all is done
    return std::make_unique<Mark>(worker_->point(), worker_ == compute_ ? nullptr : compute_,
                                  compute_ == nullptr);
  }

 private:
  class Mark final : public parallel::Pending {
   public:
    Mark(std::shared_ptr<Point> point, std::shared_ptr<Worker> compute, bool here)
        : point_(std::move(point)), compute_(std::move(compute)), here_(here) {}
    ~Mark() override { Mark::wait(); }
    void wait() override {
      if (compute_ != nullptr) std::exchange(compute_, nullptr)->follow(point_);
      if (here_) point_->wait();
    }

   private:
    std::shared_ptr<Point> point_;
    std::shared_ptr<Worker> compute_;
    bool here_;
  };

  void queue(std::function<void()> what) {
    if (worker_ == nullptr) return what();
    worker_->queue(std::move(what));
  }

  std::shared_ptr<Worker> worker_, compute_;
  SharedFlags& flags_;
  int rank_;
};

/// Threads see each other's memory as it is. Addresses travel as f64, which every communicator carries.
inline parallel::PeerBuffer share_addresses(parallel::Communicator& ranks, void* data, std::int64_t bytes) {
  const std::vector<double> mine{static_cast<double>(reinterpret_cast<std::uintptr_t>(data))};
  std::vector<double> all(static_cast<std::size_t>(ranks.size()));
  ranks.all_gather(std::span<const double>(mine), std::span<double>(all));
  parallel::PeerBuffer buffer;
  buffer.bytes = bytes;
  for (const double at : all)
    buffer.of.push_back(reinterpret_cast<std::byte*>(static_cast<std::uintptr_t>(at)));
  return buffer;
}

class ThreadPeers final : public parallel::PeerGroup {
 public:
  /// `serial`: all queues are one, in the order in which work is queued.
  ThreadPeers(parallel::Communicator& ranks, SharedFlags& flags, bool serial, std::uint64_t seed)
      : ranks_(ranks),
        flags_(flags),
        serial_(serial),
        engine_(seed * 1000 + static_cast<std::uint64_t>(ranks.rank())),
        worker_(std::make_shared<Worker>(engine_())),
        compute_(worker_, worker_, flags, ranks.rank()) {}
  ~ThreadPeers() override {
    for (const auto& worker : workers_) worker->point()->wait();
    finish();
    ranks_.barrier();
  }

  int rank() const override { return ranks_.rank(); }
  int size() const override { return ranks_.size(); }
  std::optional<parallel::PeerBuffer> share(void* data, std::int64_t bytes) override {
    return share_addresses(ranks_, data, bytes);
  }
  parallel::PeerQueue& compute() override { return compute_; }
  std::unique_ptr<parallel::PeerQueue> make_queue() override {
    if (!serial_) workers_.push_back(std::make_shared<Worker>(engine_()));
    return std::make_unique<ThreadQueue>(serial_ ? worker_ : workers_.back(), worker_, flags_, rank());
  }

  /// Work of the compute stream.
  void run(std::function<void()> what) { worker_->queue(std::move(what)); }
  /// Until all of that is done.
  void finish() { worker_->point()->wait(); }

 private:
  parallel::Communicator& ranks_;
  SharedFlags& flags_;
  const bool serial_;
  std::mt19937_64 engine_;
  std::shared_ptr<Worker> worker_;
  std::vector<std::shared_ptr<Worker>> workers_;
  ThreadQueue compute_;
};

/// Peers whose compute stream is the thread of each rank: for what computes on the CPU. `serial`: so are all
/// queues, in the order in which work is queued.
class HerePeers final : public parallel::PeerGroup {
 public:
  explicit HerePeers(parallel::Communicator& ranks, bool serial = false) : ranks_(ranks), serial_(serial) {
    if (rank() == 0) own_ = std::make_unique<SharedFlags>();
    flags_ = reinterpret_cast<SharedFlags*>(share_addresses(ranks, own_.get(), 0).of[0]);
    compute_ = std::make_unique<ThreadQueue>(nullptr, nullptr, *flags_, rank());
  }
  ~HerePeers() override {
    for (const auto& worker : workers_) worker->point()->wait();
    ranks_.barrier();
  }

  int rank() const override { return ranks_.rank(); }
  int size() const override { return ranks_.size(); }
  std::optional<parallel::PeerBuffer> share(void* data, std::int64_t bytes) override {
    return share_addresses(ranks_, data, bytes);
  }
  parallel::PeerQueue& compute() override { return *compute_; }
  std::unique_ptr<parallel::PeerQueue> make_queue() override {
    if (serial_) return std::make_unique<ThreadQueue>(nullptr, nullptr, *flags_, rank());
    workers_.push_back(std::make_shared<Worker>(workers_.size() * 100 + static_cast<std::size_t>(rank())));
    return std::make_unique<ThreadQueue>(workers_.back(), nullptr, *flags_, rank());
  }

 private:
  parallel::Communicator& ranks_;
  const bool serial_;
  std::unique_ptr<SharedFlags> own_;
  SharedFlags* flags_;
  std::unique_ptr<ThreadQueue> compute_;
  std::vector<std::shared_ptr<Worker>> workers_;
};

}  // namespace ridge::test
