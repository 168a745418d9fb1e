// The parts of a training run, and one step of it.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "launch/batch_source.h"
#include "launch/evaluate.h"
#include "launch/parallelize.h"
#include "optim/optimizer.h"
#include "parallel/groups.h"

namespace ridge::config {
class RunConfig;
}

namespace ridge {

/// What a step did.
struct StepResult {
  double loss = 0;       // mean over the global batch's target tokens
  double grad_norm = 0;  // before clipping
  double lr = 0;
};

/// A step whose loss or gradient is not finite. All ranks find it together.
class NotFiniteError final : public UserError {
 public:
  using UserError::UserError;
};

/// Model, optimizer, data and ranks, put together.
class Trainer {
 public:
  Trainer(const config::RunConfig& run, parallel::Groups& groups, Device device);
  ~Trainer();

  /// Optimizer step `step`, from 0. On a GPU the host queues all of it, reads the next step's data, and waits
  /// once, at the end. `before_update` is called when all but the parameters' update is queued.
  StepResult step(std::int64_t step, const std::function<void()>& before_update = {});
  /// Perplexity of windows of at most data.sequence_length tokens, shared among the data ranks.
  Perplexity evaluate(const std::vector<Window>& windows);

  /// What this rank writes to a checkpoint and reads from one.
  std::vector<Piece> pieces() const { return model_->pieces(optimizer_.get()); }
  /// After the pieces have been read.
  void resumed(std::int64_t steps);

  ParallelModel& model() { return *model_; }
  const models::ModelConfig& config() { return model_->model().config(); }
  std::int64_t tokens_per_step() const;

 private:
  /// Reads a step's micro-batches and sends them to the device.
  void fetch(std::int64_t step);
  void check_finite(std::int64_t step, double loss, double norm) const;

  const config::RunConfig& run_;
  parallel::Groups& groups_;
  std::unique_ptr<ParallelModel> model_;
  std::unique_ptr<optim::Optimizer> optimizer_;
  std::unique_ptr<BatchSource> data_;
  Device device_;
  std::int64_t data_ranks_, data_rank_;
  std::vector<Batch> batches_;  // of step fetched_
  std::int64_t fetched_ = -1;
};

}  // namespace ridge
