// Checkpoints written beside the training: a copy in host memory now, files later.
#pragma once

#include <atomic>
#include <chrono>
#include <future>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/base/cuda.h"
#include "launch/checkpoint.h"
#include "launch/checkpoint_files.h"
#include "launch/host_buffer.h"
#include "parallel/communicator.h"

namespace ridge {

/// Every rank of a run has one and calls the same of its functions in the same order. Each writes its own
/// file on a thread of its own; when all files are on disk, rank 0's thread joins them and gives the folder
/// its name. The threads use no communicator: they meet in the folder. A run that dies at any moment leaves
/// the older checkpoints as they were.
class CheckpointWriter {
 public:
  struct Options {
    std::string output;
    std::int64_t keep = 2;  // checkpoints
    int threads = 0;        // of a rank that write; 0: one on the CPU, some for a GPU, whose host has time
    std::chrono::milliseconds timeout = std::chrono::minutes(30);  // of rank 0 for the others
  };

  /// `ranks` must outlive the writer; its collectives run on the caller's thread and in host memory.
  CheckpointWriter(parallel::Communicator& ranks, Options options);
  /// Gives up what is under way: finish() first.
  ~CheckpointWriter();
  CheckpointWriter(const CheckpointWriter&) = delete;
  CheckpointWriter& operator=(const CheckpointWriter&) = delete;

  /// Takes the host memory that snapshots of such pieces need, which else the first one does: page-locking
  /// tens of gigabytes takes seconds.
  void reserve(const std::vector<Piece>& pieces);

  /// Copies the pieces to host memory and lets them be written to OUTPUT/checkpoints/step-N. On a GPU the
  /// copy is queued on a stream of its own, after what is queued on the compute stream; the host does not
  /// wait. If an earlier checkpoint is still being written it waits for it, and throws what went wrong with
  /// it.
  void snapshot(const TrainingState& state, const std::vector<Piece>& pieces);
  /// Before the tensors of a snapshot change: what is queued on the compute stream from now on waits for the
  /// copy. The host does not wait.
  void release_before_update();

  /// Waits until the checkpoint under way is complete on all ranks; throws what went wrong with it.
  void finish();
  /// Whether this rank's part is being written.
  bool writing() const;

  /// Seconds that the last snapshot held up the training: the host in these functions, and the GPU's compute
  /// stream at release_before_update(), for which this waits.
  double stall_seconds() const;

 private:
  struct Copy;  // of a GPU's tensors, under way

  std::vector<HostPiece> copy_to_host(const std::vector<Piece>& pieces);
  void copy_from_gpu(const std::vector<Piece>& pieces, const std::vector<HostPiece>& copies);
  void write(const TrainingState& state, const std::vector<HostPiece>& pieces);
  void write_part(const std::string& folder, const std::vector<HostPiece>& pieces);
  void write_and_commit(const TrainingState& state, const std::vector<HostPiece>& pieces);
  std::string temporary_folder(std::int64_t step) const;

  parallel::Communicator& ranks_;
  Options options_;
  std::string mark_;  // of this writer, the same on all ranks: in the names of unfinished folders
  HostBuffer buffer_;
  std::unique_ptr<Copy> copy_;
  double host_seconds_ = 0;
  StopFlag stop_{false};
  std::future<void> under_way_;
};

}  // namespace ridge
