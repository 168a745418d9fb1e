// The work that benchmarks and profiles run: steps of training and of decoding, on given or random weights.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/models/llama.h"
#include "launch/parallelize.h"
#include "optim/optimizer.h"
#include "parallel/groups.h"

namespace ridge {

/// Whether a folder has weights beside its config.json.
bool has_weights(const std::string& folder);
/// Of random weights.
inline constexpr std::uint64_t kWorkloadSeed = 0;
/// The model in `folder`; where that holds a config.json alone, or `random` is set, with random weights.
std::unique_ptr<models::Llama> workload_model(const std::string& folder, DType dtype, bool random,
                                              Device device = Device::cpu);

struct TrainingOptions {
  std::int64_t batch = 4;  // sequences of a micro-batch
  std::int64_t sequence_length = 512;
  std::int64_t accumulate = 1;  // micro-batches of a step
  DType moments = DType::f32;
  std::int64_t lora_rank = 0;  // 0: all weights are trained; else adapters on all linear layers of the blocks
  ParallelOptions layout = {};
};

/// Training steps with AdamW on random tokens.
class TrainingWorkload {
 public:
  /// `weights` null: random ones.
  TrainingWorkload(const models::ModelConfig& config, const models::ModelWeights* weights,
                   const TrainingOptions& options, parallel::Groups& groups, Device device);
  /// Queued on a GPU: the host does not wait. `before_update` is called when all gradients are there.
  void step(const std::function<void()>& before_update = {});
  /// Of one rank and step: those of all ranks, divided by the ranks.
  double tokens() const;
  ParallelModel& model() { return *model_; }
  optim::Optimizer& optimizer() { return *optimizer_; }

 private:
  TrainingOptions options_;
  std::unique_ptr<ParallelModel> model_;
  std::unique_ptr<optim::Optimizer> optimizer_;
  std::vector<Batch> batches_;  // all of the same tokens
  double scale_ = 1;
};

/// The median of `values`.
double median(std::vector<double> values);
/// The most memory that this process has had resident, in bytes.
std::int64_t peak_resident_bytes();

}  // namespace ridge
