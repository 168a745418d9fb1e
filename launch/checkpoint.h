// Training state on disk: HDF5, whole or absent.
//
// OUTPUT/checkpoints/step-00000100/ holds rank-00000.h5, the tensors that a rank wrote, and index.h5, which
// joins them by virtual datasets into whole logical tensors: /model/NAME and /optimizer/NAME; manifest.txt
// holds the files' checksums. Attributes of index.h5's root hold step, seeds, data cursor, tokens and the run
// config.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/tensor.h"

namespace ridge {

struct NamedTensor {
  std::string name;  // "model/NAME" or "optimizer/NAME"
  Tensor value;
};

struct TrainingState {
  std::int64_t step = 0;         // steps done
  std::int64_t tokens = 0;       // tokens seen
  std::int64_t next_sample = 0;  // data cursor: position in the run's order of samples
  std::int64_t seed = 0;         // of dropout and initial weights; the counters follow from the step
  std::string config;            // the resolved run config, YAML
};

/// Writes OUTPUT/checkpoints/step-N and removes all but the newest `keep`. The folder appears under its name
/// only when every byte is on disk; an older one stays good if this fails.
void save_checkpoint(const std::string& output, const TrainingState& state,
                     const std::vector<NamedTensor>& tensors, std::int64_t keep);

/// Removes what a killed run left half-written in OUTPUT and in its checkpoints.
void remove_leftovers(const std::string& output);

/// The folder of the newest complete checkpoint of a run, if there is one.
std::optional<std::string> latest_checkpoint(const std::string& output);

/// Reads the state alone, then the tensors. UserErrors name file and tensor where shapes, dtypes, checksums
/// or the set of names disagree.
TrainingState read_checkpoint_state(const std::string& folder);
void read_checkpoint_tensors(const std::string& folder, const std::vector<NamedTensor>& tensors);

}  // namespace ridge
