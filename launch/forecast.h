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
  double step_seconds = 0;      // every op at its limit; of the rank, with a pipeline of all stages
  double exposed_seconds = 0;   // of the rank: communication that nothing else runs beside
  double step_flops = 0;        // of the rank, from the ops' own Work
  std::int64_t peak_bytes = 0;  // of the rank, with the pool's free blocks
  MemoryStats memory;           // the same by purpose
};

/// Runs two training steps of `rank` on meta, sized for `device`: `micro_batches` of `micro_batch` sequences
/// each; with a pipeline those of its other ranks too, so that its bubble counts. `network`: what carries
/// tensors between ranks; by default it costs nothing. Stages need unlike memory: each rank asks for its own.
Forecast forecast_training(const models::ModelConfig& model, const config::RunConfig& run,
                           std::int64_t micro_batches, Device device, const Ceilings& roof, int rank,
                           const parallel::SimulatedNetwork& network = {1e30, 0});

/// A UserError with the numbers where a rank's GPU has less memory than the run needs.
void require_room(const Forecast& forecast, Device device);

}  // namespace ridge
