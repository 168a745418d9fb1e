// Pipeline schedules as data: what each rank does, in which order.
//
// Stages are numbered along the model; micro-batches and stages count from 0. A schedule is an order of
// compute, and messages between ranks follow from it. Stages of one rank that are neighbours pass tensors
// without a message.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace ridge::parallel {

enum class Act : std::uint8_t {
  forward,
  backward,         // gradients of a stage's input and weights
  backward_input,   // of its input alone, and
  backward_weight,  // those of its weights, later
  send_activation,  // the stage's output, to the next stage
  receive_activation,
  send_gradient,  // of the stage's input, to the stage before
  receive_gradient,
};
std::string_view name_of(Act act);
constexpr bool is_compute(Act act) { return act <= Act::backward_weight; }

struct Action {
  Act act = Act::forward;
  int stage = 0;
  int micro = 0;
  friend bool operator==(const Action&, const Action&) = default;
};
/// Such as "backward_input of stage 2, micro-batch 5".
std::string describe(const Action& action);

enum class Schedule : std::uint8_t {
  gpipe,        // all forwards, then all backwards (Huang et al., 2019)
  one_f_one_b,  // "1f1b": backward as early as can be; rank r holds ranks - r micro-batches (PipeDream-Flush)
  interleaved,  // chunks >= 2 stages a rank, stage s on rank s % ranks (Narayanan et al., 2021)
  zb_h1,        // "zb-h1": weight gradients fill gaps, with the memory of 1F1B (Qi et al., 2023)
  zero_bubble,  // "zero-bubble": ZB-V, 2 stages a rank laid out in a V; with the memory of 1F1B (Qi et al.,
                // 2024)
};
std::string_view name_of(Schedule kind);
/// A UserError lists the names.
Schedule parse_schedule(std::string_view name);

/// Stages a rank: `asked`, or where that is 0 the schedule's own number. A UserError where it takes another.
int chunks_of(Schedule kind, int asked);

int rank_of_stage(Schedule kind, int ranks, int chunks, int stage);
/// The stages of a rank, ascending.
std::vector<int> stages_of_rank(Schedule kind, int ranks, int chunks, int rank);

/// One rank's actions, messages too. Any number of micro-batches from 1 on; where interleaved and zero_bubble
/// want more (a multiple of ranks, 2 ranks - 1), those beyond are left out of the larger schedule.
std::vector<Action> schedule(Schedule kind, int ranks, int chunks, int micro_batches, int rank);
/// All ranks' lists.
std::vector<std::vector<Action>> schedules(Schedule kind, int ranks, int chunks, int micro_batches);
/// The forwards of a list and their messages: for evaluation.
std::vector<Action> forward_only(const std::vector<Action>& list);

/// The most pairs of stage and micro-batch whose activations a rank holds at once: from the forward to the
/// end of the backward, weight gradients included.
int peak_in_flight(const std::vector<Action>& list);

/// Where an action stands: rank, and index in the rank's list.
struct Place {
  int rank = 0;
  int index = 0;
};
/// Messages that a link, from a stage to a neighbour, holds at the most: the next send waits until the oldest
/// was received. It bounds the memory of what was sent, and slows none of these schedules down.
inline constexpr int kLinkWindow = 2;
/// An order in which all ranks' actions can run, each list in its own order, a receive after its send. An
/// Error where ranks wait for each other, an action comes before its input, or messages of a stage overtake
/// one another.
std::vector<Place> run_order(const std::vector<std::vector<Action>>& lists, int window = kLinkWindow);

/// As run_order, and an Error unless every stage does all its work on every micro-batch exactly once.
void check_schedule(const std::vector<std::vector<Action>>& lists, int stages, int micro_batches,
                    bool with_backward = true);

}  // namespace ridge::parallel
