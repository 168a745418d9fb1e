#include "parallel/end_notice.h"

#include <unistd.h>

#include <atomic>

namespace ridge::parallel {
namespace {

// What the handler may read: a handler may use little else.
std::atomic<const char*> text{nullptr};
std::atomic<std::size_t> length{0};

// The default action is in place again (SA_RESETHAND), and takes the signal when this returns. The line is
// said once, whatever a library does about signals meanwhile.
void say_and_end(int signal) {
  const char* line = text.exchange(nullptr);
  if (line != nullptr) {
    const ssize_t written = ::write(STDERR_FILENO, line, length.load());
    static_cast<void>(written);
  }
  ::raise(signal);
}

}  // namespace

EndNotice::EndNotice(std::string line) : line_(std::move(line) + "\n") {
  struct sigaction before {};
  if (::sigaction(SIGTERM, nullptr, &before) != 0 || before.sa_handler != SIG_DFL) return;
  length = line_.size();
  text = line_.c_str();
  struct sigaction action {};
  action.sa_handler = say_and_end;
  action.sa_flags = static_cast<int>(SA_RESETHAND);
  installed_ = ::sigaction(SIGTERM, &action, nullptr) == 0;
}

EndNotice::~EndNotice() {
  if (!installed_) return;
  ::signal(SIGTERM, SIG_DFL);
  text = nullptr;
}

}  // namespace ridge::parallel
