#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <exception>
#include <mutex>
#include <thread>

#include "core/base/error.h"
#include "parallel/communicator.h"

namespace ridge::parallel {
namespace {

// Thrown in ranks that wait for one that failed.
class Aborted final : public Error {
 public:
  using Error::Error;
};

// What the ranks of one group share.
class Group {
 public:
  explicit Group(int size) : buffers(static_cast<std::size_t>(size)), size_(size) {}

  int size() const { return size_; }

  void arrive() {
    std::unique_lock lock(mutex_);
    if (aborted_) throw Aborted("another rank stopped: " + reason_);
    const std::uint64_t phase = phase_;
    if (++waiting_ == size_) {
      waiting_ = 0;
      ++phase_;
      all_here_.notify_all();
      return;
    }
    all_here_.wait(lock, [&] { return phase_ != phase || aborted_; });
    if (phase_ == phase) throw Aborted("another rank stopped: " + reason_);
  }

  void abort(const std::string& reason) noexcept {
    const std::lock_guard lock(mutex_);
    if (!aborted_) reason_ = reason;
    aborted_ = true;
    all_here_.notify_all();
  }

  std::vector<void*> buffers;  // what each rank brought to the collective

 private:
  int size_;
  int waiting_ = 0;
  std::uint64_t phase_ = 0;
  bool aborted_ = false;
  std::string reason_;
  std::mutex mutex_;
  std::condition_variable all_here_;
};

class Done final : public Pending {
 public:
  void wait() override {}
};

class ThreadsCommunicator final : public Communicator {
 public:
  ThreadsCommunicator(std::shared_ptr<Group> group, int rank) : group_(std::move(group)), rank_(rank) {}
  int rank() const override { return rank_; }
  int size() const override { return group_->size(); }
  void barrier() override { group_->arrive(); }
  void abort(const std::string& reason, int) noexcept override { group_->abort(reason); }

 protected:
  void do_all_reduce(Span values, Reduce op) override {
    visit_any(values.dtype, [&]<class T>(std::type_identity<T>) {
      if constexpr (std::is_arithmetic_v<T>) {
        reduce(std::span<T>(static_cast<T*>(values.data), values.count), op);
      } else {
        fail("all_reduce of {}", name_of(values.dtype));
      }
    });
  }
  // Ranks meet in the hook that starts it: the order of collectives is what matters here, not overlap.
  std::unique_ptr<Pending> do_all_reduce_async(Span values) override {
    do_all_reduce(values, Reduce::sum);
    return std::make_unique<Done>();
  }
  void do_all_gather(Span mine, Span all) override {
    check(all.count == mine.count * static_cast<std::size_t>(size()), "all_gather into size() pieces");
    share(mine.data);
    const std::size_t bytes = mine.count * size_of(mine.dtype);
    for (std::size_t r = 0; r < group_->buffers.size(); ++r) {
      std::memcpy(static_cast<char*>(all.data) + r * bytes, group_->buffers[r], bytes);
    }
    group_->arrive();
  }
  void do_broadcast(Span values, int root) override {
    share(values.data);
    if (rank_ != root) {
      std::memcpy(values.data, group_->buffers.at(static_cast<std::size_t>(root)),
                  values.count * size_of(values.dtype));
    }
    group_->arrive();
  }

 private:
  void share(void* data) {
    group_->buffers[static_cast<std::size_t>(rank_)] = data;
    group_->arrive();
  }

  // Every rank sums all buffers in the order of ranks, so all get the same bits.
  template <class T>
  void reduce(std::span<T> values, Reduce op) {
    share(values.data());
    std::vector<T> total(values.size());
    for (std::size_t r = 0; r < group_->buffers.size(); ++r) {
      const T* other = static_cast<const T*>(group_->buffers[r]);
      for (std::size_t i = 0; i < total.size(); ++i) {
        if (r == 0) {
          total[i] = other[i];
        } else {
          total[i] = op == Reduce::sum ? static_cast<T>(total[i] + other[i]) : std::max(total[i], other[i]);
        }
      }
    }
    group_->arrive();
    std::copy(total.begin(), total.end(), values.begin());
    group_->arrive();
  }

  std::shared_ptr<Group> group_;
  int rank_;
};

std::string what(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const std::exception& e) {
    return e.what();
  } catch (...) {
    return "unknown error";
  }
}

bool is_echo(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const Aborted&) {
    return true;
  } catch (...) {
    return false;
  }
}

}  // namespace

void run_ranks(int size, const std::function<void(Communicator&)>& body) {
  check(size >= 1, "at least one rank");
  const auto group = std::make_shared<Group>(size);
  std::vector<std::exception_ptr> errors(static_cast<std::size_t>(size));
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank) {
    threads.emplace_back([&, rank] {
      try {
        ThreadsCommunicator communicator(group, rank);
        body(communicator);
      } catch (...) {
        errors[static_cast<std::size_t>(rank)] = std::current_exception();
        group->abort(what(std::current_exception()));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  std::exception_ptr first;
  for (const std::exception_ptr& error : errors) {
    if (error && (!first || is_echo(first))) first = error;
  }
  if (first) std::rethrow_exception(first);
}

}  // namespace ridge::parallel
