#include <algorithm>
#include <cstring>
#include <exception>
#include <thread>

#include "core/base/error.h"
#include "parallel/communicator.h"
#include "parallel/threads_group.h"

namespace ridge::parallel {
namespace {

// What sums of T are kept in: they are rounded to 16 bits once, at the end.
template <class T>
using sum_t = std::conditional_t<std::is_arithmetic_v<T>, T, float>;

// Messages that were sent, or will be.
class Letters final : public Pending {
 public:
  Letters(std::shared_ptr<ThreadGroup> group, int rank) : group_(std::move(group)), rank_(rank) {}
  void expect(int from, const AnySpan& values) {
    expected_.push_back({from, group_->next_ticket(from, rank_), values});
  }
  void wait() override {
    for (; taken_ < expected_.size(); ++taken_) {
      const Expected& e = expected_[taken_];
      group_->take(e.from, rank_, e.ticket, e.values);
    }
  }

 private:
  struct Expected {
    int from;
    std::uint64_t ticket;
    AnySpan values;
  };
  std::shared_ptr<ThreadGroup> group_;
  int rank_;
  std::size_t taken_ = 0;
  std::vector<Expected> expected_;
};

class ThreadsCommunicator final : public Communicator {
 public:
  ThreadsCommunicator(std::shared_ptr<ThreadGroups> all, std::shared_ptr<ThreadGroup> group, int rank)
      : all_(std::move(all)), group_(std::move(group)), rank_(rank) {}
  int rank() const override { return rank_; }
  int size() const override { return group_->size(); }
  void barrier() override { group_->arrive(); }
  void abort(const std::string& reason, int) noexcept override { all_->stop(reason); }
  std::unique_ptr<Communicator> split(int color) override {
    struct Wish {
      int color;
      std::shared_ptr<ThreadGroup> group;  // made by the first of the color
    } mine{color, nullptr};
    share(&mine);
    const auto wish = [&](int r) { return static_cast<Wish*>(group_->buffers[static_cast<std::size_t>(r)]); };
    std::vector<int> members;
    for (int r = 0; r < size(); ++r) {
      if (wish(r)->color == color) members.push_back(r);
    }
    if (color >= 0 && members.front() == rank_) mine.group = all_->make(static_cast<int>(members.size()));
    group_->arrive();
    const std::shared_ptr<ThreadGroup> group = wish(members.front())->group;
    group_->arrive();  // all have read
    if (color < 0) return nullptr;
    const auto place = std::find(members.begin(), members.end(), rank_) - members.begin();
    return std::make_unique<ThreadsCommunicator>(all_, group, static_cast<int>(place));
  }

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
  std::unique_ptr<Pending> do_exchange_async(const std::vector<Message>& messages) override {
    if (!in_host_memory(messages.front().values, "threads")) return nothing_pending();
    auto pending = std::make_unique<Letters>(group_, rank_);
    for (const Message& m : messages) {
      if (m.way == Message::Way::send) {
        group_->post(rank_, m.peer, m.values);
      } else {
        pending->expect(m.peer, m.values);
      }
    }
    return pending;
  }

 private:
  void share(void* data) {
    group_->buffers[static_cast<std::size_t>(rank_)] = data;
    group_->arrive();
  }

  // `to` becomes the reduction of the elements from `begin` on of every rank's `values`.
  void reduce(Span values, Reduce op, Span to, std::size_t begin) {
    visit_any(values.dtype, [&]<class T>(std::type_identity<T>) {
      reduce(static_cast<T*>(values.data), op, std::span<T>(static_cast<T*>(to.data), to.count), begin);
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

  std::shared_ptr<ThreadGroups> all_;
  std::shared_ptr<ThreadGroup> group_;
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
  const auto all = std::make_shared<ThreadGroups>();
  const auto group = all->make(size);
  std::vector<std::exception_ptr> errors(static_cast<std::size_t>(size));
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank) {
    threads.emplace_back([&, rank] {
      try {
        ThreadsCommunicator communicator(all, group, rank);
        body(communicator);
      } catch (...) {
        errors[static_cast<std::size_t>(rank)] = std::current_exception();
        all->stop(what(std::current_exception()));
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
