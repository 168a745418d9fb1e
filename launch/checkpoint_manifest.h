// What a checkpoint folder says about itself: manifest.txt, all that a reader needs to find its elements in
// the rank files by plain reads. Text, a record a line, with the XXH3 of all of it at the end:
//
//   ridge-checkpoint VERSION PROGRAM
//   state {JSON}
//   file NAME BYTES FRAME          FRAME: XXH3 of the file's bytes that belong to no box
//   tensor NAME DTYPE DIMS...
//   box FILE POSITION OFFSET... EXTENT... CHECKSUM...
//   end CHECKSUM
//
// A box is one of the tensor above it: contiguous in the FILE-th file from byte POSITION on, with the XXH3 of
// every kChunkBytes of it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/dtype.h"
#include "parallel/placement.h"

namespace ridge {

struct TrainingState {
  std::int64_t step = 0;         // steps done
  std::int64_t tokens = 0;       // tokens seen
  std::int64_t next_sample = 0;  // data cursor: position in the run's order of samples
  std::int64_t seed = 0;         // of dropout and initial weights; the counters follow from the step
  std::string config = {};       // the resolved run config, YAML
  std::string layout = {};       // of the ranks that wrote it, such as "shard 2 x tp 4"
  bool weights_only = false;     // a run begins here with a fresh optimizer
  std::string base = {};         // base_fingerprint() of what adapters are trained on; empty: not known
};

inline constexpr std::int64_t kCheckpointVersion = 2;
inline constexpr std::int64_t kChunkBytes = std::int64_t{4} << 20;
inline constexpr const char* kManifestFile = "manifest.txt";
inline constexpr const char* kIndexFile = "index.h5";

struct StoredFile {
  std::string name;
  std::uint64_t bytes = 0;
  std::uint64_t frame = 0;
};

struct StoredBox {
  std::int64_t file = 0;       // place in CheckpointManifest::files
  std::uint64_t position = 0;  // byte in that file
  parallel::Box box;
  std::vector<std::uint64_t> checksums;  // a chunk each
};

struct StoredTensor {
  std::string name;
  DType dtype = DType::f32;
  std::vector<std::int64_t> dims;
  std::vector<StoredBox> boxes;
};

struct CheckpointManifest {
  std::string program;  // its version
  TrainingState state;
  std::vector<StoredFile> files;
  std::vector<StoredTensor> tensors;

  /// Null where there is none; needs tensors sorted by name.
  const StoredTensor* find(std::string_view name) const;
};

/// The version of this program.
std::string program_version();

std::int64_t bytes_of(const StoredTensor& tensor, const parallel::Box& box);
/// Chunks of a box of so many bytes.
std::int64_t chunk_count(std::int64_t bytes);

std::string manifest_text(const CheckpointManifest& manifest);
/// A UserError names `source` and what is wrong: damage, another format version, a box outside of its tensor
/// or its file.
CheckpointManifest parse_manifest(std::string_view text, const std::string& source);
/// FOLDER/manifest.txt.
CheckpointManifest read_manifest(const std::string& folder);

/// Throws an Error unless the tensor's boxes fill it without gap or overlap.
void check_tiling(const StoredTensor& tensor);
/// One manifest of those of all ranks, tensors sorted by name. UserError where ranks run different versions
/// of the program, Error where they disagree about a tensor, or leave a part of one to nobody.
CheckpointManifest join_manifests(std::vector<CheckpointManifest> parts);

}  // namespace ridge
