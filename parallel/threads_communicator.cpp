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

// What sums of T are kept in: they are rounded to bf16 once, at the end.
template <class T>
using sum_t = std::conditional_t<std::is_arithmetic_v<T>, T, float>;

class ThreadsCommunicator final : public Communicator {
 public:
  ThreadsCommunicator(std::shared_ptr<Group> group, int rank) : group_(std::move(group)), rank_(rank) {}
  int rank() const override { return rank_; }
  int size() const override { return group_->size(); }
  void barrier() override { group_->arrive(); }
  void abort(const std::string& reason, int) noexcept override { group_->abort(reason); }

 protected:
  void do_all_reduce(Span values, Reduce op) override {
    if (!in_host_memory(values, "threads")) return;
    reduce(values, op, values, 0);
  }
  // Ranks meet in the hook that starts it: the order of collectives is what matters here, not overlap.
  std::unique_ptr<Pending> do_all_reduce_async(Span values) override {
    do_all_reduce(values, Reduce::sum);
    return nothing_pending();
  }
  void do_all_gather(Span mine, Span all) override {
    if (!in_host_memory(mine, "threads")) return;
    share(mine.data);
    for (std::size_t r = 0; r < group_->buffers.size(); ++r) {
      char* to = static_cast<char*>(all.data) + r * mine.bytes();
      if (mine.count > 0 && to != group_->buffers[r]) std::memcpy(to, group_->buffers[r], mine.bytes());
    }
    group_->arrive();
  }
  std::unique_ptr<Pending> do_all_gather_async(Span mine, Span all) override {
    do_all_gather(mine, all);
    return nothing_pending();
  }
  std::unique_ptr<Pending> do_reduce_scatter_async(Span all, Span mine) override {
    if (in_host_memory(mine, "threads"))
      reduce(all, Reduce::sum, mine, static_cast<std::size_t>(rank_) * mine.count);
    return nothing_pending();
  }
  void do_broadcast(Span values, int root) override {
    if (!in_host_memory(values, "threads")) return;
    share(values.data);
    if (rank_ != root && values.count > 0)
      std::memcpy(values.data, group_->buffers[static_cast<std::size_t>(root)], values.bytes());
    group_->arrive();
  }

 private:
  void share(void* data) {
    group_->buffers[static_cast<std::size_t>(rank_)] = data;
    group_->arrive();
  }

  // `to` becomes the reduction of the elements from `begin` on of every rank's `values`.
  void reduce(Span values, Reduce op, Span to, std::size_t begin) {
    visit_any(values.dtype, [&]<class T>(std::type_identity<T>) {
      if constexpr (std::is_arithmetic_v<T> || std::is_same_v<T, bf16>) {
        reduce(static_cast<T*>(values.data), op, std::span<T>(static_cast<T*>(to.data), to.count), begin);
      } else {
        fail("reduction of {}", name_of(values.dtype));
      }
    });
  }

  // Every rank reduces in the order of ranks, so all get the same bits.
  template <class T>
  void reduce(T* values, Reduce op, std::span<T> to, std::size_t begin) {
    share(values);
    std::vector<sum_t<T>> total(to.size());
    for (std::size_t r = 0; r < group_->buffers.size(); ++r) {
      const T* other = static_cast<const T*>(group_->buffers[r]) + begin;
      for (std::size_t i = 0; i < total.size(); ++i) {
        const auto value = static_cast<sum_t<T>>(other[i]);
        if (r == 0) {
          total[i] = value;
        } else {
          total[i] = op == Reduce::sum ? static_cast<sum_t<T>>(total[i] + value) : std::max(total[i], value);
        }
      }
    }
    group_->arrive();  // all have read: what is reduced may be written over
    std::transform(total.begin(), total.end(), to.begin(), [](auto sum) { return static_cast<T>(sum); });
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
