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
  ThreadQueue(std::shared_ptr<Worker> worker, std::shared_ptr<Worker> compute, SharedFlags& flags, int rank)
      : worker_(std::move(worker)), compute_(std::move(compute)), flags_(flags), rank_(rank) {}

  void follow_compute() override {
    if (worker_ != compute_) worker_->follow(compute_->point());
  }
  // In two halves: who reads too early or writes too late is seen.
  void copy(void* to, const void* from, std::int64_t bytes) override {
    const auto half = static_cast<std::size_t>(bytes / 2), rest = static_cast<std::size_t>(bytes) - half;
    worker_->queue([=] { std::memcpy(to, from, half); });
    worker_->queue(
        [=] { std::memcpy(static_cast<char*>(to) + half, static_cast<const char*>(from) + half, rest); });
  }
  void signal(int peer, int flag, std::uint32_t count) override {
    worker_->queue([=, this] { flags_.set(peer, flag, rank_, count); });
  }
  void await(int peer, int flag, std::uint32_t count) override {
    worker_->queue([=, this] { flags_.await(rank_, flag, peer, count); });
  }
  std::unique_ptr<parallel::Pending> mark(const char*) override {
    return std::make_unique<Mark>(worker_->point(), worker_ == compute_ ? nullptr : compute_);
  }

 private:
  class Mark final : public parallel::Pending {
   public:
    Mark(std::shared_ptr<Point> point, std::shared_ptr<Worker> compute)
        : point_(std::move(point)), compute_(std::move(compute)) {}
    ~Mark() override { Mark::wait(); }
    void wait() override {
      if (compute_ != nullptr) std::exchange(compute_, nullptr)->follow(point_);
    }

   private:
    std::shared_ptr<Point> point_;
    std::shared_ptr<Worker> compute_;
  };

  std::shared_ptr<Worker> worker_, compute_;
  SharedFlags& flags_;
  int rank_;
};

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
    const std::vector<std::int64_t> mine{reinterpret_cast<std::int64_t>(data)};
    std::vector<std::int64_t> all(static_cast<std::size_t>(size()));
    ranks_.all_gather(std::span<const std::int64_t>(mine), std::span<std::int64_t>(all));
    parallel::PeerBuffer buffer;
    buffer.bytes = bytes;
    for (const std::int64_t at : all) buffer.of.push_back(reinterpret_cast<std::byte*>(at));
    return buffer;
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

}  // namespace ridge::test
