// How a run shows where it is: a bar with the time left on a terminal, plain lines in a pipe.
#pragma once

#include <cstdint>
#include <cstdio>
#include <string>
#include <string_view>

namespace ridge {

/// Seconds in few characters: "7s", "3m05s", "2h04m", "3d02h".
std::string short_duration(double seconds);

/// `[=====>    ] 12/50 24%  TEXT  3m05s left`, cut to `columns`.
std::string progress_bar(std::int64_t done, std::int64_t total, std::string_view text, double seconds_left,
                         std::size_t columns);

bool is_terminal(std::FILE* file);
/// Columns of the terminal behind `file`; 100 where there is none.
std::size_t terminal_columns(std::FILE* file);

/// On a terminal one line drawn anew, at most ten times a second; else a line at the first, the last and
/// every `every`-th step of this run. The time left follows the mean pace of this run's steps.
class ProgressLine {
 public:
  struct Options {
    std::int64_t total_steps = 0;
    std::int64_t first_step = 0;  // where a resumed run goes on
    std::int64_t every = 1;       // plain lines: steps between two
    bool terminal = false;
  };
  ProgressLine(Options options, std::FILE* out) : options_(options), out_(out) {}
  ~ProgressLine();
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;

  /// After `done` steps of total_steps, `seconds` after the start of this run; `text` is shown as it is.
  void update(std::int64_t done, std::string_view text, double seconds);

  /// Shows a line of its own, above the bar.
  void note(std::string_view text);

 private:
  void clear();
  double seconds_left(std::int64_t done, double seconds) const;

  Options options_;
  std::FILE* out_;
  double drawn_at_ = -1;  // seconds; -1: never
  bool bar_shown_ = false;
};

}  // namespace ridge
