#include "launch/progress.h"

#include <fmt/core.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>

namespace ridge {
namespace {

constexpr std::int64_t kBarWidth = 20;          // characters
constexpr double kRedrawSeconds = 0.1;          // shortest time between two drawings
constexpr double kLongestShown = 1000 * 86400;  // seconds

std::string bar(std::int64_t done, std::int64_t total) {
  const std::int64_t filled = total > 0 ? kBarWidth * std::min(done, total) / total : kBarWidth;
  std::string out(static_cast<std::size_t>(filled), '=');
  if (filled < kBarWidth) out += '>';
  out.resize(kBarWidth, ' ');
  return out;
}

}  // namespace

std::string short_duration(double seconds) {
  if (!(seconds >= 0) || seconds > kLongestShown) return "?";
  const auto s = static_cast<std::int64_t>(seconds + 0.5);
  if (s < 60) return fmt::format("{}s", s);
  if (s < 3600) return fmt::format("{}m{:02}s", s / 60, s % 60);
  if (s < 86400) return fmt::format("{}h{:02}m", s / 3600, s / 60 % 60);
  return fmt::format("{}d{:02}h", s / 86400, s / 3600 % 24);
}

std::string progress_bar(std::int64_t done, std::int64_t total, std::string_view text, double seconds_left,
                         std::size_t columns) {
  const std::int64_t percent = total > 0 ? 100 * std::min(done, total) / total : 100;
  const std::string line = fmt::format("[{}] {}/{} {}%  {}  {} left", bar(done, total), done, total, percent,
                                       text, short_duration(seconds_left));
  return line.substr(0, columns);
}

bool is_terminal(std::FILE* file) { return isatty(fileno(file)) == 1; }

std::size_t terminal_columns(std::FILE* file) {
  winsize size{};
  const bool known = ioctl(fileno(file), TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
  return known ? size.ws_col : 100;
}

ProgressLine::~ProgressLine() {
  if (bar_shown_) std::fputc('\n', out_);
}

double ProgressLine::seconds_left(std::int64_t done, double seconds) const {
  const auto taken = static_cast<double>(done - options_.first_step);
  return taken > 0 ? seconds / taken * static_cast<double>(options_.total_steps - done) : -1;
}

void ProgressLine::clear() {
  if (bar_shown_) fmt::print(out_, "\r\x1b[K");  // return, erase to the end of the line
  bar_shown_ = false;
}

void ProgressLine::update(std::int64_t done, std::string_view text, double seconds) {
  const bool first = drawn_at_ < 0;
  const bool last = done >= options_.total_steps;
  const double left = seconds_left(done, seconds);
  if (options_.terminal) {
    if (!first && !last && seconds - drawn_at_ < kRedrawSeconds) return;
    clear();
    // One column stays free, so that no terminal wraps.
    fmt::print(out_, "{}", progress_bar(done, options_.total_steps, text, left, terminal_columns(out_) - 1));
    bar_shown_ = true;
  } else {
    if (!first && !last && done % std::max<std::int64_t>(1, options_.every) != 0) return;
    fmt::print(out_, "step {}/{}  {}  {} left\n", done, options_.total_steps, text, short_duration(left));
  }
  drawn_at_ = seconds;
  std::fflush(out_);
}

void ProgressLine::note(std::string_view text) {
  clear();
  fmt::print(out_, "{}\n", text);
  std::fflush(out_);
}

}  // namespace ridge
