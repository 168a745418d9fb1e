// metrics.jsonl: one JSON object a line, flushed, cut back to where a run resumes.
#pragma once

#include <cstdint>
#include <cstdio>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <variant>

namespace ridge {

/// A named value of a line; a number that is not finite is written as null.
struct Metric {
  std::string_view name;
  std::variant<std::int64_t, double, std::string_view> value;
};

/// Appends to `folder`/metrics.jsonl. One rank of a run holds one.
class MetricsLog {
 public:
  /// Opens the log for a run that goes on at `first_step`: drops a torn last line, and everything from the
  /// first line on whose "step" is at or after `first_step`. The folder must exist.
  explicit MetricsLog(const std::string& folder, std::int64_t first_step = 0);

  /// Writes {"step": step, fields...} and flushes it.
  void write(std::int64_t step, std::span<const Metric> fields);

  const std::string& path() const { return path_; }

 private:
  struct Close {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };
  std::string path_;
  std::unique_ptr<std::FILE, Close> file_;
};

}  // namespace ridge
