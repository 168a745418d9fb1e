#include "launch/box_runs.h"

namespace ridge {

BoxRuns::BoxRuns(const parallel::Box& from, const parallel::Box& to) {
  const std::size_t dims = from.extent.size();
  std::vector<std::int64_t> extent(dims), from_step(dims), to_step(dims);
  std::int64_t from_row = 1, to_row = 1;
  for (std::size_t d = dims; d-- > 0;) {
    const std::int64_t begin = std::max(from.offset[d], to.offset[d]);
    extent[d] = std::min(from.offset[d] + from.extent[d], to.offset[d] + to.extent[d]) - begin;
    if (extent[d] <= 0) return;
    from_step[d] = from_row;
    to_step[d] = to_row;
    from_first_ += (begin - from.offset[d]) * from_row;
    to_first_ += (begin - to.offset[d]) * to_row;
    from_row *= from.extent[d];
    to_row *= to.extent[d];
  }
  run_ = 1;
  std::size_t outer = dims;
  for (bool whole = true; outer > 0 && whole; --outer) {  // whole rows in both go on in the next row
    whole = extent[outer - 1] == from.extent[outer - 1] && extent[outer - 1] == to.extent[outer - 1];
    run_ *= extent[outer - 1];
  }
  from_end_ = from_first_ + run_;
  for (std::size_t d = 0; d < outer; ++d) from_end_ += (extent[d] - 1) * from_step[d];
  const auto kept = static_cast<std::ptrdiff_t>(outer);
  outer_.assign(extent.begin(), extent.begin() + kept);
  from_step_.assign(from_step.begin(), from_step.begin() + kept);
  to_step_.assign(to_step.begin(), to_step.begin() + kept);
}

}  // namespace ridge
