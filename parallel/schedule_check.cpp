#include <algorithm>
#include <deque>
#include <map>
#include <set>
#include <utility>

#include "core/base/error.h"
#include "parallel/schedule.h"

namespace ridge::parallel {
namespace {

// Runs all lists without time: who has done what.
class Walk {
 public:
  Walk(const std::vector<std::vector<Action>>& lists, int window)
      : lists_(lists),
        window_(static_cast<std::size_t>(window)),
        next_(lists.size(), 0),
        done_(lists.size()) {
    for (std::size_t r = 0; r < lists.size(); ++r) {
      for (const Action& a : lists[r]) {
        last_stage_ = std::max(last_stage_, a.stage);
        if (!is_compute(a.act)) continue;
        const auto [home, fresh] = home_.emplace(a.stage, r);
        if (home->second != r) fail("stage {} is on ranks {} and {}", a.stage, home->second, r);
      }
    }
  }

  std::vector<Place> run() {
    for (bool moved = true; moved;) {
      moved = false;
      for (std::size_t r = 0; r < lists_.size(); ++r) moved = advance(r) || moved;
    }
    for (std::size_t r = 0; r < lists_.size(); ++r) {
      if (next_[r] < lists_[r].size()) {
        fail("deadlock: rank {} waits in {}, number {} of its list", r, describe(lists_[r][next_[r]]),
             next_[r]);
      }
    }
    for (const auto& [link, micros] : on_the_way_) {
      if (!micros.empty()) fail("{} is never received", describe({link.first, link.second, micros.front()}));
    }
    return std::move(order_);
  }

 private:
  using Link = std::pair<Act, int>;  // send_activation or send_gradient, and the stage that sends

  bool advance(std::size_t rank) {
    const std::size_t before = next_[rank];
    while (next_[rank] < lists_[rank].size() && step(rank, lists_[rank][next_[rank]])) {
      order_.push_back({static_cast<int>(rank), static_cast<int>(next_[rank]++)});
    }
    return next_[rank] > before;
  }

  // False where the action waits for another rank.
  bool step(std::size_t rank, const Action& a) {
    if (a.act == Act::receive_activation || a.act == Act::receive_gradient) {
      const bool forward = a.act == Act::receive_activation;
      const Link link(forward ? Act::send_activation : Act::send_gradient, a.stage + (forward ? -1 : 1));
      std::deque<int>& sent = on_the_way_[link];
      if (sent.empty()) return false;
      if (sent.front() != a.micro) fail("{} overtakes micro-batch {}", describe(a), sent.front());
      sent.pop_front();
    } else if (a.act == Act::send_activation || a.act == Act::send_gradient) {
      std::deque<int>& sent = on_the_way_[{a.act, a.stage}];
      if (sent.size() == window_) return false;
      check_input(rank, a);
      sent.push_back(a.micro);
    } else {
      check_input(rank, a);
    }
    if (!done_[rank].insert(key(a)).second) fail("{} twice", describe(a));
    return true;
  }

  void check_input(std::size_t rank, const Action& a) {
    const auto done = [&](Act act, int stage) { return done_[rank].count(key({act, stage, a.micro})) != 0; };
    const auto forward_done = [&](int stage) { return done(Act::forward, stage); };
    const auto gradient_done = [&](int stage) {
      return done(Act::backward, stage) || done(Act::backward_input, stage);
    };
    bool ready = true;
    switch (a.act) {
      case Act::forward:
        ready = a.stage == 0 || done(Act::receive_activation, a.stage) || forward_done(a.stage - 1);
        break;
      case Act::backward:
      case Act::backward_input:
        ready =
            forward_done(a.stage) && !gradient_done(a.stage) &&
            (a.stage == last_stage_ || done(Act::receive_gradient, a.stage) || gradient_done(a.stage + 1));
        break;
      case Act::backward_weight:
        ready = done(Act::backward_input, a.stage);
        break;
      case Act::send_activation:
        ready = forward_done(a.stage);
        break;
      default:
        ready = gradient_done(a.stage);
    }
    if (!ready) fail("{} on rank {} before its input is there, or after its work is done", describe(a), rank);
  }

  using Key = std::pair<Act, std::int64_t>;
  static Key key(const Action& a) { return {a.act, (static_cast<std::int64_t>(a.stage) << 32) + a.micro}; }

  const std::vector<std::vector<Action>>& lists_;
  std::size_t window_;
  std::vector<std::size_t> next_;  // by rank
  std::vector<std::set<Key>> done_;
  std::map<int, std::size_t> home_;  // rank by stage
  std::map<Link, std::deque<int>> on_the_way_;
  std::vector<Place> order_;
  int last_stage_ = 0;
};

}  // namespace

std::vector<Place> run_order(const std::vector<std::vector<Action>>& lists, int window) {
  check(window >= 1, "a link that carries a message");
  return Walk(lists, window).run();
}

void check_schedule(const std::vector<std::vector<Action>>& lists, int stages, int micro_batches,
                    bool with_backward) {
  run_order(lists);
  std::map<std::pair<int, int>, std::map<Act, int>> work;  // by stage and micro-batch
  for (const std::vector<Action>& list : lists) {
    for (const Action& a : list) {
      const bool known = a.stage >= 0 && a.stage < stages && a.micro >= 0 && a.micro < micro_batches;
      if (!known) fail("{}: {} stages, {} micro-batches", describe(a), stages, micro_batches);
      ++work[{a.stage, a.micro}][a.act];
    }
  }
  for (int s = 0; s < stages; ++s) {
    for (int i = 0; i < micro_batches; ++i) {
      std::map<Act, int>& of = work[{s, i}];
      const int backward = with_backward ? 1 : 0, whole = of[Act::backward];
      const bool once = of[Act::forward] == 1 && whole + of[Act::backward_input] == backward &&
                        whole + of[Act::backward_weight] == backward;
      if (!once) fail("stage {}, micro-batch {}: forward and backward are not done exactly once", s, i);
    }
  }
}

}  // namespace ridge::parallel
