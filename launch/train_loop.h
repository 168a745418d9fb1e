// A training run, from a resolved config to a model or an adapter on disk.
#pragma once

#include <functional>

#include "core/base/stream.h"
#include "parallel/groups.h"

namespace ridge::config {
class RunConfig;
}

namespace ridge {

struct TrainResult {
  std::int64_t steps = 0;  // done in all, with those before a resume
  std::int64_t first_step = 0;
  double final_loss = 0;    // of the last step, mean over the global batch's tokens
  double tokens_per_s = 0;  // median over the steps of this run, all ranks
  double limit_share =
      0;  // median: time that the step's work needs at the machine's limits / time that it took
  double valid_perplexity = 0;       // of the last evaluation; 0: none
  std::int64_t peak_bytes = 0;       // of this rank
  std::int64_t predicted_bytes = 0;  // the same on the meta device
  std::string saved_to;              // the final model or adapter
};

/// What a step did: for benchmarks that want more than the log.
struct StepReport {
  std::int64_t step = 0;  // from 0
  double loss = 0, grad_norm = 0, lr = 0, seconds = 0;
};

/// Runs from the newest checkpoint of `output`, or from the start. Every rank calls it with the same resolved
/// config. A loss that is not finite stops the run with a UserError that names step and tensor.
TrainResult train(const config::RunConfig& run, parallel::Groups& groups, Device device, const Ceilings& roof,
                  const std::function<void(const StepReport&)>& on_step = {});

}  // namespace ridge
