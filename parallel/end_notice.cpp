#include "parallel/end_notice.h"

#include <unistd.h>

#include <atomic>
#include <mutex>
#include <vector>

namespace ridge::parallel {
namespace {

// What the handler may read: a handler may use little else.
std::atomic<const std::string*> current{nullptr};
std::atomic<bool> said{false};

// Of all notices that live, the oldest first.
struct Notices {
  std::mutex mutex;
  std::vector<const std::string*> lines;
  bool installed = false;
};

Notices& notices() {
  static Notices all;
  return all;
}

void write_line(const std::string& line) {
  const ssize_t written = ::write(STDERR_FILENO, line.data(), line.size());
  static_cast<void>(written);
}

// The default action is in place again (SA_RESETHAND), and takes the signal when this returns. The line is
// said once, whatever a library does about signals meanwhile.
void say_and_end(int signal) {
  const std::string* line = current.load();
  if (line != nullptr && !said.exchange(true)) write_line(*line);
  ::raise(signal);
}

bool install() {
  struct sigaction before {};
  if (::sigaction(SIGTERM, nullptr, &before) != 0 || before.sa_handler != SIG_DFL) return false;
  struct sigaction action {};
  action.sa_handler = say_and_end;
  action.sa_flags = static_cast<int>(SA_RESETHAND);
  return ::sigaction(SIGTERM, &action, nullptr) == 0;
}

}  // namespace

EndNotice::EndNotice(std::string line) : line_(std::move(line) + "\n") {
  Notices& all = notices();
  const std::lock_guard lock(all.mutex);
  all.lines.push_back(&line_);
  current = all.lines.front();
  if (!all.installed) all.installed = install();
}

EndNotice::~EndNotice() {
  Notices& all = notices();
  const std::lock_guard lock(all.mutex);
  std::erase(all.lines, &line_);
  current = all.lines.empty() ? nullptr : all.lines.front();
  if (!all.installed || !all.lines.empty()) return;
  ::signal(SIGTERM, SIG_DFL);
  all.installed = false;
}

void EndNotice::say(const std::string& line) noexcept {
  if (said.exchange(true)) return;
  write_line(line + "\n");
}

}  // namespace ridge::parallel
