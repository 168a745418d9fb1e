// Adapters around the pieces of linear layers that a rank has.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "core/models/llama.h"
#include "lora/lora_config.h"
#include "parallel/communicator.h"
#include "parallel/placement.h"

namespace ridge {

/// Adapters on meta, inside of what makes pieces whole. `weights` says by path where the piece of each
/// layer's dense weight lies; `placements` gets the adapters'. Layers that the config targets may all be
/// elsewhere.
void add_rank_adapters(models::Llama& model, const lora::LoraConfig& config, std::uint64_t seed,
                       const std::map<std::string, parallel::Placement>& weights,
                       const parallel::Communicator& tp,
                       std::map<std::string, parallel::Placement>& placements);

/// Where the weights of linear layers lie, by path.
std::map<std::string, parallel::Placement> weight_placements(
    models::Llama& model, const std::map<std::string, parallel::Placement>& placements);

}  // namespace ridge
