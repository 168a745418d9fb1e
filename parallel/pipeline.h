// Pipeline parallelism: runs a schedule's actions on tensors, whatever the model.
#pragma once

#include <functional>
#include <map>
#include <vector>

#include "core/tensor.h"
#include "parallel/action_clock.h"
#include "parallel/communicator.h"
#include "parallel/pipeline_links.h"
#include "parallel/schedule.h"

namespace ridge::parallel {

/// What a pipeline runs. Micro-batches count from 0 within a step.
struct PipelineWork {
  /// The output of a stage of this rank. Stage 0 gets no input (an undefined tensor); the last stage gives
  /// its part of the loss, one element, whose gradient is 1.
  std::function<Tensor(int stage, int micro, const Tensor& input)> forward;
  /// Of what a stage passes on to the next: the same for all stages.
  std::function<Shape(int micro)> shape;
  /// Told of each forward and backward before and after it; may be empty.
  std::function<void(const Action&)> before = {}, after = {};
};

class Pipeline {
 public:
  struct Options {
    Schedule kind = Schedule::one_f_one_b;
    int chunks = 0;            // stages a rank; 0: the schedule's own number
    DType dtype = DType::f32;  // of what passes between stages, gradients too
    Device device = Device::cpu;
  };
  /// Every rank of `pp` together; it must outlive this. A UserError where the schedule takes another number
  /// of stages a rank.
  Pipeline(Communicator& pp, const Options& options);

  int stages() const { return pp_.size() * options_.chunks; }
  /// This rank's, ascending.
  std::vector<int> local_stages() const;
  int rank_of(int stage) const { return rank_of_stage(options_.kind, pp_.size(), options_.chunks, stage); }
  /// The rank that has the last stage, and with it the losses.
  int loss_rank() const { return rank_of(stages() - 1); }

  /// Forward and backward of as many micro-batches, at least 1, the same on every rank: leaves collect their
  /// gradients. Returns the losses by micro-batch where the last stage is, elsewhere nothing.
  ///
  /// A stage's micro-batches come in order, forward and backward. Weight gradients that a schedule puts off
  /// are there when run() returns. After an exception this object is good for nothing.
  std::vector<Tensor> run(int micro_batches, const PipelineWork& work);
  /// Forward alone, without gradients.
  std::vector<Tensor> evaluate(int micro_batches, const PipelineWork& work);

  /// Whether the next runs are timed: each begins with a barrier then, and ends with waiting for the device.
  void measure(bool on) { measure_ = on; }
  /// This rank's forwards and backwards of the last timed run.
  const std::vector<TimedAction>& timeline() const { return timeline_; }
  /// Of that run: 1 - all ranks' time in actions / (ranks * the time until the last one's end). Every rank
  /// together.
  double bubble_share();

 private:
  const std::vector<Action>& list(int micro_batches, bool with_backward);
  std::vector<Tensor> run(int micro_batches, const PipelineWork& work, bool with_backward);

  Communicator& pp_;
  Options options_;
  PipelineLinks links_;
  std::map<std::pair<int, bool>, std::vector<Action>> lists_;
  bool measure_ = false;
  std::vector<TimedAction> timeline_;
};

}  // namespace ridge::parallel
