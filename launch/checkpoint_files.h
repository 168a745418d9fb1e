// The files of one rank in a checkpoint that is being written, and how rank 0 makes one checkpoint of them.
#pragma once

#include <atomic>
#include <chrono>
#include <string>
#include <vector>

#include "launch/checkpoint_manifest.h"

namespace ridge {

/// What a rank writes of a tensor, in host memory: the boxes' elements, one box behind the other.
struct HostPiece {
  std::string name;
  std::vector<std::int64_t> dims;  // of the whole tensor
  DType dtype = DType::f32;
  std::vector<parallel::Box> boxes;
  const std::byte* data = nullptr;
};

/// Asked while files are written or waited for: true ends that with GivenUp.
using StopFlag = std::atomic<bool>;

/// A write was ended from outside; nobody needs to be told.
struct GivenUp {};

/// Writes FOLDER/rank-RRRRR.h5, a dataset a box, on disk when it returns, and says what is in it. A rank with
/// nothing to write makes no file.
CheckpointManifest write_rank_file(const std::string& folder, int rank, const std::vector<HostPiece>& pieces,
                                   int threads, const StopFlag& stop);

/// XXH3 of a file's bytes that lie in none of its boxes.
std::uint64_t frame_checksum(const CheckpointManifest& manifest, std::int64_t file, const std::string& path);

/// Tells rank 0 through FOLDER that a rank's file is complete, or why it will never be.
void leave_part(const std::string& folder, int rank, const CheckpointManifest& part);
void leave_failure(const std::string& folder, int rank, const std::string& reason) noexcept;

/// Waits for the parts of all ranks. A UserError tells the first failure, or after `timeout` who is missing.
std::vector<CheckpointManifest> collect_parts(const std::string& folder, int ranks,
                                              std::chrono::milliseconds timeout, const StopFlag& stop);

/// Joins the parts: writes FOLDER/index.h5 and then FOLDER/manifest.txt, and removes the parts.
void write_joined(const std::string& folder, const TrainingState& state,
                  std::vector<CheckpointManifest> parts);

/// All of OUTPUT/checkpoints/step-N by one process, at once.
void write_checkpoint_alone(const std::string& output, const TrainingState& state,
                            const std::vector<HostPiece>& pieces, int threads);

}  // namespace ridge
