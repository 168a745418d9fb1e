// How long the stages of a pipeline take, and what its schedule makes of that.
#pragma once

#include <array>
#include <functional>
#include <vector>

#include "launch/parallelize.h"
#include "parallel/pipeline.h"
#include "parallel/schedule_price.h"
#include "parallel/simulated_communicator.h"

namespace ridge {

class TrainingWorkload;

struct PipelineShape {
  parallel::Schedule kind = parallel::Schedule::one_f_one_b;
  int ranks = 1, chunks = 1, micro_batches = 1;

  parallel::PipelinePrice price(const parallel::PipelineTimes& times) const;
};
PipelineShape pipeline_shape(const ParallelOptions& options, const parallel::Mesh& mesh,
                             std::int64_t micro_batches);
/// What a stage hands on, of a micro-batch of `tokens` tokens, sequences times length.
double message_bytes(const ParallelOptions& options, const parallel::Mesh& mesh, std::int64_t tokens,
                     std::int64_t hidden_size);

/// Mean seconds of each stage's actions, from timelines.
class StageMeter {
 public:
  explicit StageMeter(const PipelineShape& shape)
      : sums_(static_cast<std::size_t>(shape.ranks * shape.chunks)) {}
  void add(const std::vector<parallel::TimedAction>& timeline);
  /// Takes in what the other ranks of `pp` have added, who all call it.
  void share(parallel::Communicator& pp);
  std::vector<parallel::StageTimes> means() const;

 private:
  static constexpr std::size_t kActs = 4;  // forward, backward, its input's part, its weights' part
  struct Sums {
    std::array<double, kActs> seconds{}, count{};
  };
  std::vector<Sums> sums_;  // by stage
};

/// Shares of a pipeline's time in which its ranks wait.
struct BubbleShares {
  double measured = 0;  // the median of the steps
  double schedule = 0;  // of the schedule, with the stages' measured mean times, where messages take none
  double even = 0;      // of the schedule, where all stages' forwards and halves of backwards take the same
};
/// Runs `steps` steps. All ranks together. Zeros where the model has no pipeline.
BubbleShares measure_bubble(TrainingWorkload& work, const PipelineShape& shape, int steps);

/// A step of one rank on meta.
struct SimulatedStep {
  double seconds = 0;
  double exposed_seconds = 0;  // of these: communication that nothing else runs beside
};
/// Clocks are left as they are: what the step before sent last may arrive in this one.
SimulatedStep simulate_step(const parallel::Groups& groups, const std::function<void()>& step);

/// The step of a pipeline, from a timed step of each of its ranks alone on meta.
class PipelineForecast {
 public:
  explicit PipelineForecast(const PipelineShape& shape) : shape_(shape), meter_(shape) {}
  /// `step_seconds`: of that rank's whole step, the pipeline's part with it.
  void add(const std::vector<parallel::TimedAction>& timeline, double step_seconds);
  /// The pipeline from its first action to its last, and the longest of what ranks do before and after.
  /// `message_bytes`: what a stage hands on of a micro-batch.
  double step_seconds(const parallel::SimulatedNetwork& network, double message_bytes) const;

 private:
  PipelineShape shape_;
  StageMeter meter_;
  double beside_seconds_ = 0;  // the longest time of a rank's step outside of the pipeline
};

}  // namespace ridge
