#include "launch/checkpoint.h"

#include <algorithm>
#include <filesystem>

#include "core/io/checksum.h"
#include "core/io/file.h"
#include "core/io/hdf5.h"

namespace ridge {
namespace {

namespace fs = std::filesystem;
constexpr std::int64_t kFormatVersion = 1;
constexpr const char* kRankFile = "rank-00000.h5";
constexpr const char* kIndexFile = "index.h5";

std::string folder_name(std::int64_t step) { return fmt::format("step-{:08}", step); }

// "step-" and eight digits.
bool is_checkpoint_name(const std::string& name) {
  return name.size() == 13 && name.starts_with("step-") &&
         name.find_first_not_of("0123456789", 5) == std::string::npos;
}

bool is_complete(const fs::path& folder) {
  return is_checkpoint_name(folder.filename().string()) && fs::exists(folder / kIndexFile);
}

// A name that AtomicFile and AtomicFolder write under, of something that a run writes.
bool is_temporary(const std::string& name) {
  for (const char* stem : {"step-", "config.yaml.", "model.", "adapter."}) {
    if (name.starts_with(stem) && name.find(".tmp-") != std::string::npos) return true;
  }
  return false;
}

std::vector<fs::path> complete_checkpoints(const std::string& output) {
  std::vector<fs::path> found;
  const fs::path folder = fs::path(output) / "checkpoints";
  if (!fs::exists(folder)) return found;
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (is_complete(entry.path())) found.push_back(entry.path());
  }
  std::sort(found.begin(), found.end());
  return found;
}

std::span<const std::byte> bytes_of(const Tensor& t) {
  return {static_cast<const std::byte*>(t.data()), static_cast<std::size_t>(t.bytes())};
}

std::vector<std::int64_t> dims_of(const Tensor& t) { return {t.shape().begin(), t.shape().end()}; }

void write_rank_file(const std::string& path, const std::vector<NamedTensor>& tensors) {
  Hdf5File file = Hdf5File::create(path);
  for (const NamedTensor& t : tensors) {
    const Tensor value = t.value.detached().as_contiguous();
    const std::string name = "/" + t.name;
    file.write_dataset(name, value.dtype(), dims_of(value), bytes_of(value));
    file.set_attribute(name, "xxh3", std::string_view(checksum_text(xxh3_64(bytes_of(value)))));
  }
  file.close();
}

void write_index(const std::string& path, const TrainingState& state,
                 const std::vector<NamedTensor>& tensors) {
  Hdf5File file = Hdf5File::create(path);
  for (const NamedTensor& t : tensors) {
    const auto dims = dims_of(t.value);
    const std::vector<VirtualPiece> pieces{
        {kRankFile, "/" + t.name, std::vector<std::int64_t>(dims.size(), 0), dims}};
    file.create_virtual("/" + t.name, t.value.dtype(), dims, pieces);
  }
  file.set_attribute("/", "ridge_format", std::string_view("checkpoint"));
  file.set_attribute("/", "version", kFormatVersion);
  file.set_attribute("/", "step", state.step);
  file.set_attribute("/", "tokens", state.tokens);
  file.set_attribute("/", "next_sample", state.next_sample);
  file.set_attribute("/", "seed", state.seed);
  file.set_attribute("/", "tensors", static_cast<std::int64_t>(tensors.size()));
  file.set_attribute("/", "config", std::string_view(state.config));
  file.close();
}

void remove_old(const std::string& output, std::int64_t keep) {
  const auto all = complete_checkpoints(output);
  for (std::size_t i = 0; i + static_cast<std::size_t>(keep) < all.size(); ++i) {
    fs::remove(all[i] / kIndexFile);  // first what makes it complete
    fs::remove_all(all[i]);
  }
}

void read_tensor(const Hdf5File& index, const Hdf5File& rank, const NamedTensor& t) {
  const std::string name = "/" + t.name;
  require(index.exists(name), "{}: tensor {} is missing: the checkpoint belongs to another model",
          index.path(), t.name);
  const Tensor value = Tensor::empty(t.value.shape(), t.value.dtype());
  index.read_dataset(name, value.dtype(), dims_of(value),
                     {static_cast<std::byte*>(value.data()), static_cast<std::size_t>(value.bytes())});
  const std::string stored = rank.string_attribute(name, "xxh3");
  const std::string found = checksum_text(xxh3_64(bytes_of(value)));
  require(
      stored == found,
      "{}: tensor {} is damaged: its checksum is {}, {} was written; remove that checkpoint to use the one "
      "before",
      rank.path(), t.name, found, stored);
  t.value.copy_from(value);
}

}  // namespace

void save_checkpoint(const std::string& output, const TrainingState& state,
                     const std::vector<NamedTensor>& tensors, std::int64_t keep) {
  const fs::path folder = fs::path(output) / "checkpoints";
  fs::create_directories(folder);
  AtomicFolder target((folder / folder_name(state.step)).string());
  write_rank_file(target.path() + "/" + kRankFile, tensors);
  write_index(target.path() + "/" + kIndexFile, state, tensors);
  target.commit();
  remove_old(output, keep);
}

void remove_leftovers(const std::string& output) {
  for (const fs::path& folder : {fs::path(output), fs::path(output) / "checkpoints"}) {
    std::error_code ignored;
    std::vector<fs::path> stale;
    for (const auto& entry : fs::directory_iterator(folder, ignored)) {
      const std::string name = entry.path().filename().string();
      if (is_temporary(name) || (is_checkpoint_name(name) && !is_complete(entry.path())))
        stale.push_back(entry.path());
    }
    for (const fs::path& path : stale) fs::remove_all(path, ignored);
  }
}

std::optional<std::string> latest_checkpoint(const std::string& output) {
  const auto all = complete_checkpoints(output);
  if (all.empty()) return std::nullopt;
  return all.back().string();
}

TrainingState read_checkpoint_state(const std::string& folder) {
  const Hdf5File index = Hdf5File::open(folder + "/" + kIndexFile);
  const std::int64_t version = index.int_attribute("/", "version");
  require(version == kFormatVersion,
          "{}: checkpoint format {} is not {}: use the version of ridge that wrote it", index.path(), version,
          kFormatVersion);
  TrainingState state;
  state.step = index.int_attribute("/", "step");
  state.tokens = index.int_attribute("/", "tokens");
  state.next_sample = index.int_attribute("/", "next_sample");
  state.seed = index.int_attribute("/", "seed");
  state.config = index.string_attribute("/", "config");
  return state;
}

void read_checkpoint_tensors(const std::string& folder, const std::vector<NamedTensor>& tensors) {
  const Hdf5File index = Hdf5File::open(folder + "/" + kIndexFile);
  const Hdf5File rank = Hdf5File::open(folder + "/" + kRankFile);
  const std::int64_t stored = index.int_attribute("/", "tensors");
  require(stored == static_cast<std::int64_t>(tensors.size()),
          "{}: holds {} tensors, but this run has {}: the checkpoint belongs "
          "to another model, adapter or optimizer",
          index.path(), stored, tensors.size());
  for (const NamedTensor& t : tensors) read_tensor(index, rank, t);
}

}  // namespace ridge
