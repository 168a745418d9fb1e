// The parts of a training run, and one step of it.
#pragma once

#include <memory>
#include <vector>

#include "core/models/llama.h"
#include "launch/batch_source.h"
#include "launch/checkpoint.h"
#include "launch/parallelize.h"
#include "optim/optimizer.h"
#include "parallel/communicator.h"
#include "parallel/data_parallel.h"

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

/// Model, optimizer, data and ranks, put together. The data-parallel degree is the number of ranks.
class Trainer {
 public:
  Trainer(const config::RunConfig& run, parallel::Communicator& ranks, Device device);
  ~Trainer();

  /// Optimizer step `step`, from 0. On a GPU the host queues all of it, reads the next step's data, and waits
  /// once, at the end.
  StepResult step(std::int64_t step);

  /// What a checkpoint holds: trained parameters, then the optimizer's state.
  std::vector<NamedTensor> state_tensors() const;
  void set_steps(std::int64_t steps) { optimizer_->set_steps(steps); }

  models::Llama& model() { return *model_; }
  const Prepared& prepared() const { return prepared_; }
  const std::vector<std::string>& notes() const { return notes_; }
  std::int64_t tokens_per_step() const;

 private:
  /// The sum of the micro-batches' losses on this rank: f64 [1] on the device.
  Tensor forward_backward(std::int64_t step);
  /// Reads a step's micro-batches and sends them to the device.
  void fetch(std::int64_t step);
  void check_finite(std::int64_t step, double loss, double norm) const;

  const config::RunConfig& run_;
  parallel::Communicator& ranks_;
  std::vector<std::string> notes_;
  std::unique_ptr<models::Llama> model_;
  Prepared prepared_;
  std::unique_ptr<optim::Optimizer> optimizer_;
  std::unique_ptr<parallel::GradientReducer> reducer_;
  std::unique_ptr<BatchSource> data_;
  Device device_;
  std::vector<Batch> batches_;  // of step fetched_
  std::int64_t fetched_ = -1;
};

}  // namespace ridge
