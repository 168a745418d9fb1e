// What is done to a model before it is trained, in one visible order.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "core/models/llama.h"
#include "lora/lora_config.h"
#include "optim/optimizer.h"

namespace ridge::config {
class RunConfig;
}

namespace ridge {

struct Prepared {
  std::vector<optim::TrainedParameter> trained;  // leaves; the rest of the model is frozen
  std::optional<lora::LoraConfig> adapter;       // set where adapters are trained
  std::vector<std::string> notes;
};

/// "none", "selective" or "blocks".
models::Recompute parse_recompute(std::string_view name);

/// Order: keep the pipeline stage, quantize, apply the tensor parallel plan, add adapters, set recompute,
/// shard. Of these this version has adapters and recompute. Works on meta too.
Prepared parallelize(models::Llama& model, const config::RunConfig& config);

}  // namespace ridge
