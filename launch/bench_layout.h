// The options of a training step that is measured, as bench and profile share them.
#pragma once

#include <string>
#include <vector>

#include "launch/command_line.h"
#include "launch/workloads.h"
#include "parallel/mesh.h"

namespace ridge {

struct StepOptions {
  std::string dtype = "f32", recompute = "none", moments = "f32", quantize;
  std::int64_t batch = 4, sequence_length = 512, accumulate = 1, lora_rank = 0;
  bool any_order = false;
  std::vector<std::string> parallel;  // "shard=4": fields of the run config's `parallel`

  /// All but dtype, which stands with the model.
  void add_to(const Command& command);
  parallel::Mesh mesh(int ranks) const;
  TrainingOptions training(int ranks) const;
  /// A UserError where such a model cannot be cut so.
  void check(const models::ModelConfig& model, int ranks) const;
};

}  // namespace ridge
