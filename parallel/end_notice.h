// A last word of a process that is ended from outside, as mpirun does when another rank has died.
#pragma once

#include <csignal>
#include <string>

namespace ridge::parallel {

/// While it lives, SIGTERM writes one line to stderr before it ends the process. One at a time; where the
/// program handles that signal already, it does nothing.
class EndNotice {
 public:
  /// `line` without its newline.
  explicit EndNotice(std::string line);
  ~EndNotice();
  EndNotice(const EndNotice&) = delete;
  EndNotice& operator=(const EndNotice&) = delete;

 private:
  std::string line_;
  bool installed_ = false;
};

}  // namespace ridge::parallel
