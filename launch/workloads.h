// The work that benchmarks and profiles run: steps of training and of decoding, on given or random weights.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/models/llama.h"
#include "optim/optimizer.h"
#include "parallel/data_parallel.h"

namespace ridge {

/// The model in `folder`; where that holds a config.json alone, or `random` is set, with random weights.
std::unique_ptr<models::Llama> workload_model(const std::string& folder, DType dtype, bool random,
                                              Device device = Device::cpu);

struct TrainingOptions {
  std::int64_t batch = 4;  // sequences of a micro-batch
  std::int64_t sequence_length = 512;
  std::int64_t accumulate = 1;  // micro-batches of a step
  models::Recompute recompute = models::Recompute::none;
  DType moments = DType::f32;
  bool deterministic = true;
  std::int64_t lora_rank = 0;  // 0: all weights are trained; else adapters on all linear layers of the blocks
};

/// Training steps with AdamW on random tokens, gradients summed over `ranks`.
class TrainingWorkload {
 public:
  TrainingWorkload(models::Llama& model, const TrainingOptions& options, parallel::Communicator& ranks);
  /// Queued on a GPU: the host does not wait.
  void step();
  /// Of one rank and step.
  std::int64_t tokens() const { return ids_.numel() * options_.accumulate; }

 private:
  models::Llama& model_;
  TrainingOptions options_;
  std::vector<optim::TrainedParameter> trained_;
  std::unique_ptr<parallel::GradientReducer> reducer_;
  std::unique_ptr<optim::Optimizer> optimizer_;
  Tensor ids_, targets_;  // [B, T]
};

/// Decoding steps of one sequence after a prompt of random tokens.
class DecodingWorkload {
 public:
  DecodingWorkload(models::Llama& model, std::int64_t prompt, std::int64_t capacity);
  void step();
  /// Bytes that the next step must read: every weight once as stored, and the keys and values so far.
  double bytes_per_step() const;

 private:
  models::Llama& model_;
  nn::KvCache cache_;
  std::int32_t next_ = 0;
  double weight_bytes_ = 0;
};

/// The median of `values`.
double median(std::vector<double> values);
/// The most memory that this process has had resident, in bytes.
std::int64_t peak_resident_bytes();

}  // namespace ridge
