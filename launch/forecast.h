// What a step should cost: the same program on the meta device.
#pragma once

#include <cstdint>

#include "core/base/memory.h"
#include "core/base/stream.h"
#include "core/models/config.h"
#include "parallel/simulated_communicator.h"

namespace ridge::config {
class RunConfig;
}

namespace ridge {

struct Forecast {
  double step_seconds = 0;      // of one rank, every op at its limit
  double exposed_seconds = 0;   // of these: communication that nothing else runs beside
  double step_flops = 0;        // of one rank, from the ops' own Work
  std::int64_t peak_bytes = 0;  // of one rank, with the pool's free blocks
  MemoryStats memory;           // the same by purpose
};

/// Runs two training steps of one rank on meta, sized for `device`: `micro_batches` of `micro_batch`
/// sequences each. `network`: what carries tensors between ranks; by default it costs nothing.
Forecast forecast_training(const models::ModelConfig& model, const config::RunConfig& run,
                           std::int64_t micro_batches, Device device, const Ceilings& roof,
                           const parallel::SimulatedNetwork& network = {1e30, 0});

/// A UserError with the numbers where a rank's GPU has less memory than the run needs.
void require_room(const Forecast& forecast, Device device);

}  // namespace ridge
