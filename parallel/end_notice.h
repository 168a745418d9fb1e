// A last word of a process that is ended from outside, as mpirun does when another rank has died.
#pragma once

#include <csignal>
#include <string>

namespace ridge::parallel {

/// While it lives, SIGTERM writes one line to stderr before it ends the process. Of several the oldest
/// speaks, and a process says one line in all; where the program handles that signal already, they do
/// nothing.
class EndNotice {
 public:
  /// `line` without its newline.
  explicit EndNotice(std::string line);
  ~EndNotice();
  EndNotice(const EndNotice&) = delete;
  EndNotice& operator=(const EndNotice&) = delete;

  /// Writes the process's one line now, where this process knows why it ends; not if it was said already.
  static void say(const std::string& line) noexcept;

 private:
  std::string line_;
};

}  // namespace ridge::parallel
