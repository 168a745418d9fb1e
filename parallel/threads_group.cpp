#include "parallel/threads_group.h"

#include <cstring>

namespace ridge::parallel {

void ThreadGroup::arrive() {
  std::unique_lock lock(mutex_);
  if (stopped_) throw Aborted("another rank stopped: " + reason_);
  const std::uint64_t phase = phase_;
  if (++waiting_ == size_) {
    waiting_ = 0;
    ++phase_;
    changed_.notify_all();
    return;
  }
  changed_.wait(lock, [&] { return phase_ != phase || stopped_; });
  if (phase_ == phase) throw Aborted("another rank stopped: " + reason_);
}

void ThreadGroup::stop(const std::string& reason) noexcept {
  const std::lock_guard lock(mutex_);
  if (!stopped_) reason_ = reason;
  stopped_ = true;
  changed_.notify_all();
}

void ThreadGroup::post(int from, int to, const AnySpan& values) {
  Letter letter{std::vector<char>(values.bytes()), values.dtype, values.count};
  if (values.count > 0) std::memcpy(letter.bytes.data(), values.data, values.bytes());
  const std::lock_guard lock(mutex_);
  Box& mail = box(from, to);
  mail.letters.emplace(mail.sent++, std::move(letter));
  changed_.notify_all();
}

std::uint64_t ThreadGroup::next_ticket(int from, int to) {
  const std::lock_guard lock(mutex_);
  return box(from, to).asked_for++;
}

void ThreadGroup::take(int from, int to, std::uint64_t ticket, const AnySpan& values) {
  std::unique_lock lock(mutex_);
  Box& mail = box(from, to);
  changed_.wait(lock, [&] { return stopped_ || mail.letters.count(ticket) > 0; });
  if (stopped_) throw Aborted("another rank stopped: " + reason_);
  const Letter letter = std::move(mail.letters.extract(ticket).mapped());
  lock.unlock();
  if (letter.count != values.count || letter.dtype != values.dtype) {
    fail("rank {} expects {} {} from rank {}, which sent {} {}", to, values.count, name_of(values.dtype),
         from, letter.count, name_of(letter.dtype));
  }
  if (values.count > 0) std::memcpy(values.data, letter.bytes.data(), values.bytes());
}

std::shared_ptr<ThreadGroup> ThreadGroups::make(int size) {
  auto group = std::make_shared<ThreadGroup>(size);
  const std::lock_guard lock(mutex_);
  if (stopped_) group->stop(reason_);
  std::erase_if(groups_, [](const std::weak_ptr<ThreadGroup>& g) { return g.expired(); });
  groups_.push_back(group);
  return group;
}

void ThreadGroups::stop(const std::string& reason) noexcept {
  const std::lock_guard lock(mutex_);
  if (!stopped_) reason_ = reason;
  stopped_ = true;
  for (const std::weak_ptr<ThreadGroup>& weak : groups_) {
    if (const auto group = weak.lock()) group->stop(reason_);
  }
}

}  // namespace ridge::parallel
