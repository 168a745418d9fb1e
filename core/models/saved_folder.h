// What a folder that we write holds beside its weights.
#pragma once

#include <string>
#include <string_view>

#include "core/models/config.h"

namespace ridge::models {

/// config.json of weights in `dtype`: the model's own, with what has changed. `quantization`: the JSON of its
/// quantization_config, or empty for none.
std::string config_text(const ModelConfig& config, DType dtype, const std::string& quantization);

/// Copies tokenizer and generation files that `source` has. `source` may be empty.
void copy_companions(const std::string& source, const std::string& folder);
/// Whether a file of that name is one that copy_companions() copies.
bool is_companion(std::string_view name);

}  // namespace ridge::models
