// Hugging Face weight folders: model.safetensors, or shards with model.safetensors.index.json.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/io/safetensors.h"

namespace ridge {

/// All tensors of a folder, whichever files hold them; mapped, not read.
class WeightFolder {
 public:
  /// Takes model.safetensors, else the index and its shards. The names in an index are untrusted: plain file
  /// names only. UserError names the missing shard, or the tensor that is not where the index puts it.
  static WeightFolder open(const std::string& folder);

  /// The tensor, or null; valid as long as the folder object.
  const TensorEntry* find(std::string_view name) const;
  /// The tensor; UserError when the folder has none of that name.
  const TensorEntry& at(std::string_view name) const;
  /// All names, sorted.
  std::vector<std::string> names() const;
  std::size_t size() const { return entries_.size(); }
  /// Bytes of all tensors.
  std::uint64_t total_bytes() const;
  /// Starts reading every file into the page cache; returns at once.
  void prefetch() const;
  const std::string& path() const { return path_; }

 private:
  WeightFolder() = default;
  void add_file(SafetensorsFile file, const std::map<std::string, std::string>& weight_map);
  std::string path_;
  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  std::map<std::string_view, const TensorEntry*, std::less<>> entries_;
};

/// Bytes of a shard where the caller has no wish: that of transformers v5.
inline constexpr std::uint64_t kDefaultShardBytes = 50'000'000'000;

/// Writes a weight folder tensor by tensor. Shards fill greedily in the order of declaration; a tensor larger
/// than `max_shard_bytes` has one of its own. One shard is model.safetensors, without an index.
class WeightFolderWriter {
 public:
  /// `folder` must exist. `tensors` declares names, types and shapes; their data is ignored.
  WeightFolderWriter(std::string folder, std::span<const TensorEntry> tensors,
                     std::uint64_t max_shard_bytes = kDefaultShardBytes);
  /// Error unless declared, of that many bytes, and not written before. Any order.
  void write(std::string_view name, std::span<const std::byte> data);
  /// Commits the shards, then the index; removes weight files of an earlier write that would contradict them.
  void finish();

 private:
  void write_index() const;
  void remove_stale() const;
  std::string folder_;
  std::uint64_t total_bytes_ = 0;
  std::vector<std::string> files_;
  std::vector<SafetensorsWriter> shards_;
  std::map<std::string, std::size_t, std::less<>> shard_of_;
};

/// Writes the entries with their data in one go.
void write_weight_folder(const std::string& folder, std::span<const TensorEntry> entries,
                         std::uint64_t max_shard_bytes = kDefaultShardBytes);

}  // namespace ridge
