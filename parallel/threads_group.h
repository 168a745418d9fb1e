// What ranks that are threads of one process share.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "core/base/error.h"
#include "parallel/communicator.h"

namespace ridge::parallel {

/// Thrown in ranks that wait for one that failed.
class Aborted final : public Error {
 public:
  using Error::Error;
};

/// Threads that meet, and send each other messages.
class ThreadGroup {
 public:
  explicit ThreadGroup(int size)
      : buffers(static_cast<std::size_t>(size)),
        size_(size),
        mail_(static_cast<std::size_t>(size) * static_cast<std::size_t>(size)) {}

  int size() const { return size_; }
  /// Waits for all ranks; throws Aborted once one has stopped.
  void arrive();
  /// Wakes who waits, here for ever.
  void stop(const std::string& reason) noexcept;

  void post(int from, int to, const AnySpan& values);
  /// The place of the next message that is asked for, in the order in which they were sent.
  std::uint64_t next_ticket(int from, int to);
  /// Waits for that message; an Error where it is not of the type and count of `values`.
  void take(int from, int to, std::uint64_t ticket, const AnySpan& values);

  std::vector<void*> buffers;  // what each rank brought to the collective

 private:
  struct Letter {
    std::vector<char> bytes;
    DType dtype;
    std::size_t count;
  };
  // From one rank to another.
  struct Box {
    std::uint64_t sent = 0, asked_for = 0;
    std::map<std::uint64_t, Letter> letters;
  };
  Box& box(int from, int to) { return mail_[static_cast<std::size_t>(from * size_ + to)]; }

  int size_;
  int waiting_ = 0;
  std::uint64_t phase_ = 0;
  bool stopped_ = false;
  std::string reason_;
  std::vector<Box> mail_;
  std::mutex mutex_;
  std::condition_variable changed_;
};

/// All groups of the threads that started together: an error in one stops all.
class ThreadGroups {
 public:
  std::shared_ptr<ThreadGroup> make(int size);
  void stop(const std::string& reason) noexcept;

 private:
  std::mutex mutex_;
  std::vector<std::weak_ptr<ThreadGroup>> groups_;
  bool stopped_ = false;
  std::string reason_;
};

}  // namespace ridge::parallel
