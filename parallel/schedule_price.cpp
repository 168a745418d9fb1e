#include "parallel/schedule_price.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <tuple>
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

PipelinePrice price(const std::vector<std::vector<Action>>& lists, const PipelineTimes& times) {
  PipelinePrice result;
  result.busy.assign(lists.size(), 0);
  std::vector<double> now(lists.size(), 0);
  std::map<std::pair<Act, int>, double> link_free;      // by sending act and stage
  std::map<std::tuple<Act, int, int>, double> arrival;  // by receiving act, stage and micro-batch
  for (const auto& [rank, index] : run_order(lists)) {
    const auto r = static_cast<std::size_t>(rank);
    const Action& a = lists[r][static_cast<std::size_t>(index)];
    if (is_compute(a.act)) {
      const double taken = seconds(times, a);
      now[r] += taken;
      result.busy[r] += taken;
    } else if (a.act == Act::send_activation || a.act == Act::send_gradient) {
      const bool forward = a.act == Act::send_activation;
      double& free = link_free[{a.act, a.stage}];
      free = std::max(free, now[r]) + times.transfer;
      arrival[{forward ? Act::receive_activation : Act::receive_gradient, a.stage + (forward ? 1 : -1),
               a.micro}] = free + times.latency;
    } else {
      now[r] = std::max(now[r], arrival.at({a.act, a.stage, a.micro}));
    }
  }
  result.makespan = *std::max_element(now.begin(), now.end());
  const double busy = std::accumulate(result.busy.begin(), result.busy.end(), 0.0);
  if (result.makespan > 0)
    result.bubble_share = 1 - busy / (result.makespan * static_cast<double>(lists.size()));
  return result;
}

}  // namespace ridge::parallel
