// Going on where a run stopped.
#pragma once

#include <cstdint>
#include <string>

namespace ridge::config {
class RunConfig;
}

namespace ridge {

class Trainer;
namespace parallel {
class Communicator;
}

/// Loads the newest checkpoint of the run's output folder, by whatever layout it was written, into the
/// trainer and returns the next step; 0 where there is none. A UserError names the field where the
/// checkpoint's config and this one disagree, or where it has done more than train.steps.
std::int64_t resume(const config::RunConfig& run, Trainer& trainer, parallel::Communicator& ranks);

/// Throws that UserError for a checkpoint's config (YAML). Fields that change nothing in what is computed may
/// differ.
void check_same_run(const std::string& stored_yaml, const config::RunConfig& run, const std::string& folder);

}  // namespace ridge
