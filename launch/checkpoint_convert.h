// Checkpoints to and from the folders that other programs read.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "core/base/dtype.h"

namespace ridge::config {
class RunConfig;
}

namespace ridge {

struct Conversion {
  std::string folder;  // what was written
  std::string kind;    // model | adapter | checkpoint
  DType dtype = DType::f32;
  std::int64_t tensors = 0;
  std::int64_t step = 0;
  std::vector<std::string> notes;
};

/// The trained weights of a checkpoint as a Hugging Face folder, or its adapters as a PEFT folder; the
/// model's config and tokenizer are those that the run's config names. `dtype`: absent, that of the training;
/// f32 weights of a bf16 training are the optimizer's masters where the checkpoint has them.
Conversion export_checkpoint(const std::string& checkpoint, const std::string& out,
                             std::optional<DType> dtype);

/// The weights of a Hugging Face folder as a checkpoint at step 0 of the run, without optimizer state: the
/// run begins from it, on any layout. The run's config must be for all weights of that model.
Conversion import_model(const std::string& model, config::RunConfig run);

}  // namespace ridge
