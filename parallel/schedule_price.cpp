#include "parallel/schedule_price.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <utility>

#include "core/base/error.h"

namespace ridge::parallel {
namespace {

double seconds(const PipelineTimes& times, const Action& a) {
  const std::size_t stage = times.stages.size() == 1 ? 0 : static_cast<std::size_t>(a.stage);
  check(stage < times.stages.size(), "times of every stage, or of one for all");
  const StageTimes& t = times.stages[stage];
  switch (a.act) {
    case Act::forward:
      return t.forward;
    case Act::backward:
      return t.backward_input + t.backward_weight;
    case Act::backward_input:
      return t.backward_input;
    default:
      return t.backward_weight;
  }
}

}  // namespace

PipelinePrice price(const std::vector<std::vector<Action>>& lists, const PipelineTimes& times, int window) {
  struct Link {
    double free = 0;
    std::vector<double> arrivals, taken;  // by message
  };
  PipelinePrice result;
  result.busy.assign(lists.size(), 0);
  std::vector<double> now(lists.size(), 0);
  std::map<std::pair<Act, int>, Link> links;  // by sending act and stage
  for (const auto& [rank, index] : run_order(lists, window)) {
    const auto r = static_cast<std::size_t>(rank);
    const Action& a = lists[r][static_cast<std::size_t>(index)];
    if (is_compute(a.act)) {
      const double taken = seconds(times, a);
      now[r] += taken;
      result.busy[r] += taken;
    } else if (a.act == Act::send_activation || a.act == Act::send_gradient) {
      Link& link = links[{a.act, a.stage}];
      const std::size_t sent = link.arrivals.size(), most = static_cast<std::size_t>(window);
      if (sent >= most) now[r] = std::max(now[r], link.taken[sent - most]);
      link.free = std::max(link.free, now[r]) + times.transfer;
      link.arrivals.push_back(link.free + times.latency);
    } else {
      const bool forward = a.act == Act::receive_activation;
      Link& link = links[{forward ? Act::send_activation : Act::send_gradient, a.stage + (forward ? -1 : 1)}];
      now[r] = std::max(now[r], link.arrivals[link.taken.size()]);
      link.taken.push_back(now[r]);
    }
  }
  result.makespan = *std::max_element(now.begin(), now.end());
  const double busy = std::accumulate(result.busy.begin(), result.busy.end(), 0.0);
  const double whole = result.makespan * static_cast<double>(lists.size());
  if (whole > 0) result.bubble_share = 1 - busy / whole;
  return result;
}

}  // namespace ridge::parallel
