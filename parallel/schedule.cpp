#include "parallel/schedule.h"

#include <algorithm>
#include <array>

#include "core/base/error.h"

namespace ridge::parallel {
namespace {

constexpr std::array kSchedules{Schedule::gpipe, Schedule::one_f_one_b, Schedule::interleaved,
                                Schedule::zb_h1, Schedule::zero_bubble};

// Writes one rank's compute.
class Order {
 public:
  void forward(int stage, int micro) { list_.push_back({Act::forward, stage, micro}); }
  void backward(int stage, int micro) { list_.push_back({Act::backward, stage, micro}); }
  void input(int stage, int micro) { list_.push_back({Act::backward_input, stage, micro}); }
  void weight(int stage, int micro) { list_.push_back({Act::backward_weight, stage, micro}); }
  std::vector<Action> take() { return std::move(list_); }

 private:
  std::vector<Action> list_;
};

std::vector<Action> gpipe(int micro_batches, int rank) {
  Order order;
  for (int i = 0; i < micro_batches; ++i) order.forward(rank, i);
  for (int i = 0; i < micro_batches; ++i) order.backward(rank, i);
  return order.take();
}

std::vector<Action> one_f_one_b(int ranks, int micro_batches, int rank) {
  Order order;
  const int warm_up = std::min(micro_batches, ranks - 1 - rank);
  for (int i = 0; i < warm_up; ++i) order.forward(rank, i);
  for (int i = 0; i < micro_batches; ++i) {
    if (warm_up + i < micro_batches) order.forward(rank, warm_up + i);
    order.backward(rank, i);
  }
  return order.take();
}

// Rank r's weight gradients lag r behind, and fill the gaps at the end.
std::vector<Action> zb_h1(int ranks, int micro_batches, int rank) {
  Order order;
  const int warm_up = std::min(micro_batches, ranks - 1 - rank);
  for (int i = 0; i < warm_up; ++i) order.forward(rank, i);
  int weights = 0;
  for (int i = 0; i < micro_batches; ++i) {
    if (warm_up + i < micro_batches) order.forward(rank, warm_up + i);
    order.input(rank, i);
    if (i >= rank) order.weight(rank, weights++);
  }
  while (weights < micro_batches) order.weight(rank, weights++);
  return order.take();
}

// Micro-batches in groups of `ranks`: a group passes all chunks, then comes the next. `micro_batches` is a
// multiple of `ranks`.
std::vector<Action> interleaved(int ranks, int chunks, int micro_batches, int rank) {
  Order order;
  const auto micro = [&](int k) { return k / (ranks * chunks) * ranks + k % ranks; };
  const auto chunk = [&](int k) { return k % (ranks * chunks) / ranks; };
  const auto forward = [&](int k) { order.forward(chunk(k) * ranks + rank, micro(k)); };
  const auto backward = [&](int k) { order.backward((chunks - 1 - chunk(k)) * ranks + rank, micro(k)); };
  const int all = micro_batches * chunks;
  const int warm_up = std::min(all, 2 * (ranks - 1 - rank) + (chunks - 1) * ranks);
  for (int k = 0; k < warm_up; ++k) forward(k);
  for (int k = 0; k < all; ++k) {
    if (warm_up + k < all) forward(warm_up + k);
    backward(k);
  }
  return order.take();
}

// ZB-V. `micro_batches` is at least 2 ranks - 1.
std::vector<Action> zero_bubble(int ranks, int micro_batches, int rank) {
  Order order;
  const int down = rank, up = 2 * ranks - 1 - rank;  // this rank's stages
  int f_down = 0, f_up = 0, b_down = 0, b_up = 0;
  const auto whole_backward = [&](int stage, int& micro) {
    order.input(stage, micro);
    order.weight(stage, micro++);
  };
  for (int i = 0; i < 2 * (ranks - rank) - 1; ++i) order.forward(down, f_down++);
  for (int i = 0; i < rank; ++i) {
    order.forward(up, f_up++);
    order.forward(down, f_down++);
  }
  for (int i = 0; i < ranks - rank; ++i) {
    order.forward(up, f_up++);
    whole_backward(up, b_up);
  }
  while (f_up < f_down || f_down < micro_batches) {
    if (f_down < micro_batches) order.forward(down, f_down++);
    whole_backward(down, b_down);
    order.forward(up, f_up++);
    whole_backward(up, b_up);
  }
  int w_down = b_down, w_up = b_up;
  for (int i = 0; i < rank; ++i) {
    order.input(down, b_down++);
    order.input(up, b_up++);
  }
  for (int i = 0; i < ranks - rank; ++i) {
    order.input(down, b_down++);
    order.weight(down, w_down++);
  }
  while (w_up < b_up) order.weight(up, w_up++);
  while (w_down < b_down) order.weight(down, w_down++);
  return order.take();
}

std::vector<Action> compute_order(Schedule kind, int ranks, int chunks, int micro_batches, int rank) {
  switch (kind) {
    case Schedule::gpipe:
      return gpipe(micro_batches, rank);
    case Schedule::one_f_one_b:
      return one_f_one_b(ranks, micro_batches, rank);
    case Schedule::interleaved:
      return interleaved(ranks, chunks, (micro_batches + ranks - 1) / ranks * ranks, rank);
    case Schedule::zb_h1:
      if (ranks == 1) return one_f_one_b(ranks, micro_batches, rank);  // no bubble to fill
      return zb_h1(ranks, micro_batches, rank);
    case Schedule::zero_bubble:
      return zero_bubble(ranks, std::max(micro_batches, 2 * ranks - 1), rank);
  }
  fail("schedule {}", static_cast<int>(kind));
}

}  // namespace

std::string_view name_of(Act act) {
  constexpr std::array<std::string_view, 8> kNames{"forward",         "backward",        "backward_input",
                                                   "backward_weight", "send_activation", "receive_activation",
                                                   "send_gradient",   "receive_gradient"};
  return kNames.at(static_cast<std::size_t>(act));
}

std::string describe(const Action& action) {
  return fmt::format("{} of stage {}, micro-batch {}", name_of(action.act), action.stage, action.micro);
}

std::string_view name_of(Schedule kind) {
  constexpr std::array<std::string_view, 5> kNames{"gpipe", "1f1b", "interleaved", "zb-h1", "zero-bubble"};
  return kNames.at(static_cast<std::size_t>(kind));
}

Schedule parse_schedule(std::string_view name) {
  std::string known;
  for (const Schedule kind : kSchedules) {
    if (name == name_of(kind)) return kind;
    known += fmt::format("{}{}", known.empty() ? "" : ", ", name_of(kind));
  }
  fail_user("pipeline schedule '{}': known are {}", name, known);
}

int chunks_of(Schedule kind, int asked) {
  require(asked >= 0, "pipeline stages a rank: {}; give 1 or more, or 0 for the schedule's own number",
          asked);
  if (kind == Schedule::interleaved) {
    require(asked != 1, "the pipeline schedule interleaved with 1 stage a rank: give 2 or more, or use 1f1b");
    return asked == 0 ? 2 : asked;
  }
  const int chunks = kind == Schedule::zero_bubble ? 2 : 1;
  require(asked == 0 || asked == chunks,
          "the pipeline schedule {} has {} stage(s) a rank, not {}: leave the number out, or use interleaved",
          name_of(kind), chunks, asked);
  return chunks;
}

int rank_of_stage(Schedule kind, int ranks, int chunks, int stage) {
  check(ranks >= 1 && chunks == chunks_of(kind, chunks) && stage >= 0 && stage < ranks * chunks, "a stage");
  if (kind == Schedule::zero_bubble) return stage < ranks ? stage : 2 * ranks - 1 - stage;
  return stage % ranks;
}

std::vector<int> stages_of_rank(Schedule kind, int ranks, int chunks, int rank) {
  std::vector<int> stages;
  for (int stage = 0; stage < ranks * chunks; ++stage) {
    if (rank_of_stage(kind, ranks, chunks, stage) == rank) stages.push_back(stage);
  }
  return stages;
}

std::vector<Action> schedule(Schedule kind, int ranks, int chunks, int micro_batches, int rank) {
  check(rank >= 0 && rank < ranks && micro_batches >= 1, "a rank and at least one micro-batch");
  const int stages = ranks * chunks;
  std::vector<int> home(static_cast<std::size_t>(stages));
  for (int s = 0; s < stages; ++s) home[static_cast<std::size_t>(s)] = rank_of_stage(kind, ranks, chunks, s);
  const auto elsewhere = [&](int stage) {
    return stage >= 0 && stage < stages && home[static_cast<std::size_t>(stage)] != rank;
  };
  std::vector<Action> list;
  for (const Action& action : compute_order(kind, ranks, chunks, micro_batches, rank)) {
    const auto& [act, stage, micro] = action;
    if (micro >= micro_batches) continue;
    const bool forward = act == Act::forward, weight = act == Act::backward_weight;
    const int from = forward ? stage - 1 : stage + 1, to = forward ? stage + 1 : stage - 1;
    if (!weight && elsewhere(from)) {
      list.push_back({forward ? Act::receive_activation : Act::receive_gradient, stage, micro});
    }
    list.push_back(action);
    if (!weight && elsewhere(to)) {
      list.push_back({forward ? Act::send_activation : Act::send_gradient, stage, micro});
    }
  }
  return list;
}

std::vector<std::vector<Action>> schedules(Schedule kind, int ranks, int chunks, int micro_batches) {
  std::vector<std::vector<Action>> lists;
  for (int r = 0; r < ranks; ++r) lists.push_back(schedule(kind, ranks, chunks, micro_batches, r));
  return lists;
}

std::vector<Action> forward_only(const std::vector<Action>& list) {
  std::vector<Action> kept;
  std::copy_if(list.begin(), list.end(), std::back_inserter(kept), [](const Action& a) {
    return a.act == Act::forward || a.act == Act::send_activation || a.act == Act::receive_activation;
  });
  return kept;
}

int peak_in_flight(const std::vector<Action>& list) {
  int held = 0, peak = 0;
  for (const Action& action : list) {
    if (action.act == Act::forward) peak = std::max(peak, ++held);
    if (action.act == Act::backward || action.act == Act::backward_weight) --held;
  }
  return peak;
}

}  // namespace ridge::parallel
