// Whether a model and a run fit a layout of ranks.
#pragma once

#include "core/models/config.h"

namespace ridge::config {
class RunConfig;
}

namespace ridge {

/// A UserError with the numbers and the nearest layout that works, where heads, blocks, sequence or batch
/// cannot be cut as the resolved config asks.
void check_layout(const config::RunConfig& run, const models::ModelConfig& model);

}  // namespace ridge
