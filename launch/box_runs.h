// Where two boxes of one tensor, each stored row-major by itself, hold the same elements.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "parallel/placement.h"

namespace ridge {

/// The common part of two boxes and its runs: rows that are contiguous in both.
class BoxRuns {
 public:
  BoxRuns(const parallel::Box& from, const parallel::Box& to);

  bool empty() const { return run_ == 0; }
  /// The part's elements lie among [first(), end()) of `from`.
  std::int64_t first() const { return from_first_; }
  std::int64_t end() const { return from_end_; }

  /// Calls fn(place in from, place in to, count), in elements, for the runs within [begin, end) of `from`,
  /// clipped to it, in ascending order.
  template <class Fn>
  void for_each(std::int64_t begin, std::int64_t end, const Fn& fn) const {
    if (empty() || begin >= end) return;
    std::int64_t first = 0, last = outer_.empty() ? 1 : outer_[0];
    if (!outer_.empty()) {  // rows that lie wholly before or behind are not walked
      first = std::max<std::int64_t>(0, (begin - from_first_) / from_step_[0] - 1);
      last = std::min(last, (end - from_first_) / from_step_[0] + 1);
    }
    for (std::int64_t row = first; row < last; ++row) walk(row, begin, end, fn);
  }

 private:
  template <class Fn>
  void walk(std::int64_t row, std::int64_t begin, std::int64_t end, const Fn& fn) const {
    std::vector<std::int64_t> index(outer_.size(), 0);
    if (!index.empty()) index[0] = row;
    while (true) {
      std::int64_t from = from_first_, to = to_first_;
      for (std::size_t d = 0; d < index.size(); ++d) {
        from += index[d] * from_step_[d];
        to += index[d] * to_step_[d];
      }
      const std::int64_t a = std::max(from, begin), b = std::min(from + run_, end);
      if (a < b) fn(a, to + (a - from), b - a);
      std::size_t d = index.size();
      while (d > 1 && ++index[d - 1] == outer_[d - 1]) index[--d] = 0;
      if (d <= 1) return;
    }
  }

  std::vector<std::int64_t> outer_;                // extents of the part that a run does not cover
  std::vector<std::int64_t> from_step_, to_step_;  // elements from one index of outer_ to the next
  std::int64_t from_first_ = 0, from_end_ = 0, to_first_ = 0;
  std::int64_t run_ = 0;  // elements; 0: nothing in common
};

}  // namespace ridge
