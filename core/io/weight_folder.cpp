#include "core/io/weight_folder.h"

#include <algorithm>
#include <filesystem>
#include <set>
#include <utility>

#include "core/base/error.h"
#include "core/io/quote.h"
#include "core/io/safetensors_types.h"
#include "core/io/weight_index.h"

namespace ridge {
namespace {

namespace fs = std::filesystem;

constexpr const char* kSingle = "model.safetensors";
constexpr const char* kIndex = "model.safetensors.index.json";
constexpr std::size_t kMaxIndexBytes = 100'000'000;

std::string in_folder(const std::string& folder, const std::string& file) {
  return (fs::path(folder) / file).string();
}

std::uint64_t declared_bytes(const TensorEntry& tensor) {
  const SafetensorsType* type = find_safetensors_type(tensor.dtype);
  if (type == nullptr)
    fail("tensor {} has no safetensors dtype: {}", shown(tensor.name), shown(tensor.dtype));
  const auto bytes = safetensors_bytes(*type, tensor.shape);
  if (!bytes) fail("tensor {}: its shape makes no size", shown(tensor.name));
  return *bytes;
}

std::vector<std::vector<TensorEntry>> split(std::span<const TensorEntry> tensors, std::uint64_t max_bytes) {
  std::vector<std::vector<TensorEntry>> shards(1);
  std::uint64_t filled = 0;
  for (const TensorEntry& tensor : tensors) {
    const std::uint64_t bytes = declared_bytes(tensor);
    const bool full = filled > max_bytes || bytes > max_bytes - filled;
    if (full && !shards.back().empty()) {
      shards.emplace_back();
      filled = 0;
    }
    shards.back().push_back({tensor.name, tensor.dtype, tensor.shape, {}});
    filled += bytes;
  }
  return shards;
}

// model-00001-of-00003.safetensors
bool is_shard_name(const std::string& name) {
  constexpr std::string_view kPattern = "model-#####-of-#####.safetensors";
  if (name.size() != kPattern.size()) return false;
  for (std::size_t i = 0; i < name.size(); ++i) {
    const bool digit = name[i] >= '0' && name[i] <= '9';
    if (kPattern[i] == '#' ? !digit : name[i] != kPattern[i]) return false;
  }
  return true;
}

}  // namespace

WeightFolder WeightFolder::open(const std::string& folder) {
  WeightFolder weights;
  weights.path_ = folder;
  const std::string single = in_folder(folder, kSingle), index = in_folder(folder, kIndex);
  if (fs::exists(single)) {
    weights.add_file(SafetensorsFile::open(single), {});
    return weights;
  }
  require(fs::is_directory(folder), "no weights: '{}' is not a folder", folder);
  require(fs::exists(index), "no weights: folder '{}' has neither {} nor {}", folder, kSingle, kIndex);
  const auto weight_map = parse_weight_index(read_text_file(index, kMaxIndexBytes), index);
  std::set<std::string> shards;
  for (const auto& [name, shard] : weight_map) shards.insert(shard);
  for (const std::string& shard : shards) {
    const std::string path = in_folder(folder, shard);
    require(fs::exists(path), "shard '{}' is missing, which '{}' names", path, index);
    weights.add_file(SafetensorsFile::open(path), weight_map);
  }
  for (const auto& [name, shard] : weight_map) {
    require(weights.find(name) != nullptr, "tensor {} is not in shard '{}', where '{}' puts it", shown(name),
            in_folder(folder, shard), index);
  }
  return weights;
}

// A tensor that the index puts into another shard is passed over here; one that it does not list must be
// unique.
void WeightFolder::add_file(SafetensorsFile file, const std::map<std::string, std::string>& weight_map) {
  files_.push_back(std::make_unique<SafetensorsFile>(std::move(file)));
  const std::string shard = fs::path(files_.back()->path()).filename().string();
  for (const TensorEntry& entry : files_.back()->entries()) {
    const auto listed = weight_map.find(entry.name);
    if (listed != weight_map.end() && listed->second != shard) continue;
    require(entries_.emplace(entry.name, &entry).second,
            "tensor {} is in two shards of '{}' and the index does not say in which", shown(entry.name),
            path_);
  }
}

const TensorEntry* WeightFolder::find(std::string_view name) const {
  const auto it = entries_.find(name);
  return it == entries_.end() ? nullptr : it->second;
}

const TensorEntry& WeightFolder::at(std::string_view name) const {
  const TensorEntry* entry = find(name);
  require(entry != nullptr, "the weights in '{}' have no tensor {} (they have {} tensors)", path_,
          shown(name), entries_.size());
  return *entry;
}

std::vector<std::string> WeightFolder::names() const {
  std::vector<std::string> names;
  names.reserve(entries_.size());
  for (const auto& [name, entry] : entries_) names.emplace_back(name);
  return names;
}

std::uint64_t WeightFolder::total_bytes() const {
  std::uint64_t total = 0;
  for (const auto& [name, entry] : entries_) total += entry->data.size();
  return total;
}

void WeightFolder::prefetch() const {
  for (const auto& file : files_) {
    for (const TensorEntry& entry : file->entries()) ridge::prefetch(entry.data);
  }
}

WeightFolderWriter::WeightFolderWriter(std::string folder, std::span<const TensorEntry> tensors,
                                       std::uint64_t max_shard_bytes)
    : folder_(std::move(folder)) {
  require(max_shard_bytes > 0, "a shard of weights must hold at least 1 byte, not 0");
  const auto shards = split(tensors, max_shard_bytes);
  for (std::size_t i = 0; i < shards.size(); ++i) {
    files_.push_back(shards.size() == 1
                         ? kSingle
                         : fmt::format("model-{:05d}-of-{:05d}.safetensors", i + 1, shards.size()));
    shards_.emplace_back(in_folder(folder_, files_.back()), shards[i]);
    for (const TensorEntry& tensor : shards[i]) {
      if (!shard_of_.emplace(tensor.name, i).second) fail("tensor {} is declared twice", shown(tensor.name));
      total_bytes_ += declared_bytes(tensor);
    }
  }
}

void WeightFolderWriter::write(std::string_view name, std::span<const std::byte> data) {
  const auto it = shard_of_.find(name);
  if (it == shard_of_.end()) fail("tensor {} was not declared for '{}'", shown(name), folder_);
  shards_[it->second].write(name, data);
}

void WeightFolderWriter::finish() {
  for (SafetensorsWriter& shard : shards_) shard.finish();
  if (files_.size() > 1) write_index();
  remove_stale();
}

void WeightFolderWriter::write_index() const {
  std::map<std::string, std::string> weight_map;
  for (const auto& [name, shard] : shard_of_) weight_map.emplace(name, files_[shard]);
  write_file_atomically(in_folder(folder_, kIndex), format_weight_index(weight_map, total_bytes_));
}

void WeightFolderWriter::remove_stale() const {
  std::set<std::string> keep(files_.begin(), files_.end());
  if (files_.size() > 1) keep.insert(kIndex);
  std::vector<fs::path> stale;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder_)) {
    const std::string name = entry.path().filename().string();
    const bool weights = name == kSingle || name == kIndex || is_shard_name(name);
    if (weights && !keep.contains(name)) stale.push_back(entry.path());
  }
  std::error_code ignored;
  std::ranges::sort(stale, std::greater<>());  // the index goes before the shards that it names
  for (const fs::path& path : stale) fs::remove(path, ignored);
}

void write_weight_folder(const std::string& folder, std::span<const TensorEntry> entries,
                         std::uint64_t max_shard_bytes) {
  WeightFolderWriter writer(folder, entries, max_shard_bytes);
  for (const TensorEntry& entry : entries) writer.write(entry.name, entry.data);
  writer.finish();
}

}  // namespace ridge
