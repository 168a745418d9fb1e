// Training state on disk: HDF5, whole or absent, written by any layout of ranks and read by any other.
//
// OUTPUT/checkpoints/step-00000100/ holds rank-RRRRR.h5, the elements that a rank wrote; index.h5, which
// joins them by virtual datasets into whole logical tensors (/model/NAME, /optimizer/NAME) for any HDF5 tool,
// with step, seeds, data cursor and the run config as attributes; and manifest.txt, by which this program
// reads: launch/checkpoint_manifest.h.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/tensor.h"
#include "launch/checkpoint_manifest.h"
#include "parallel/communicator.h"

namespace ridge {

/// What this rank holds of a logical tensor.
struct Piece {
  std::string name;                  // "model/NAME" or "optimizer/NAME"; no spaces
  std::vector<std::int64_t> dims;    // of the whole tensor
  DType dtype = DType::f32;          // of `value` too
  std::vector<parallel::Box> boxes;  // where `value`'s elements lie, in the order in which it stores them
  Tensor value;                      // contiguous, of any shape
  bool writes = true;                // false: another rank writes the same elements
};

/// A tensor that one rank holds whole.
struct NamedTensor {
  std::string name;
  Tensor value;
};
std::vector<Piece> whole_pieces(const std::vector<NamedTensor>& tensors);

/// Throws an Error where a piece contradicts itself.
void check_pieces(const std::vector<Piece>& pieces);

/// Writes OUTPUT/checkpoints/step-N at once, as one rank, and removes all but the newest `keep`. The folder
/// appears under its name only when every byte is on disk; an older one stays good if this fails. Runs of
/// many ranks, and those that do not want to wait: launch/checkpoint_writer.h.
void save_checkpoint(const std::string& output, const TrainingState& state,
                     const std::vector<NamedTensor>& tensors, std::int64_t keep);

/// Where OUTPUT/checkpoints/step-N lies.
std::string checkpoint_folder(const std::string& output, std::int64_t step);
/// Removes all complete checkpoints but the newest `keep`.
void remove_old_checkpoints(const std::string& output, std::int64_t keep);
/// Removes what a killed run left half-written in OUTPUT and in its checkpoints.
void remove_leftovers(const std::string& output);

/// The folder of the newest complete checkpoint of a run, if there is one.
std::optional<std::string> latest_checkpoint(const std::string& output);

/// One checkpoint, to be read by any layout. Its UserErrors name the file, the tensor, and both values.
class CheckpointReader {
 public:
  /// Reads the manifest.
  explicit CheckpointReader(const std::string& folder);

  const TrainingState& state() const { return manifest_.state; }
  const CheckpointManifest& manifest() const { return manifest_; }

  /// Fills the pieces of every rank of `ranks`, which all call it: every byte is checked before it is used.
  /// Together the ranks must ask for all that the checkpoint holds. Where it holds weights only, pieces named
  /// "optimizer/..." stay as they are.
  void read(const std::vector<Piece>& pieces, parallel::Communicator& ranks) const;
  /// The same of some of its tensors, for this rank alone.
  void read_some(const std::vector<Piece>& pieces) const;
  /// Reads all of it, and throws at the first byte that is not what was written.
  void verify() const;

 private:
  const StoredTensor* stored_of(const Piece& piece) const;
  std::string folder_;
  CheckpointManifest manifest_;
};

/// The forms of one rank that holds everything whole.
TrainingState read_checkpoint_state(const std::string& folder);
void read_checkpoint_tensors(const std::string& folder, const std::vector<NamedTensor>& tensors);

}  // namespace ridge
