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
constexpr const char* kManifestFile = "manifest.txt";  // a line a file: XXH3, bytes, name
constexpr std::size_t kMaxManifestBytes = 1 << 20;

std::string folder_name(std::int64_t step) { return fmt::format("step-{:08}", step); }

// "step-" and eight digits.
bool is_checkpoint_name(const std::string& name) {
  return name.size() == 13 && name.starts_with("step-") &&
         name.find_first_not_of("0123456789", 5) == std::string::npos;
}

bool is_complete(const fs::path& folder) {
  return is_checkpoint_name(folder.filename().string()) && fs::exists(folder / kManifestFile);
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
    file.write_dataset(name, value.dtype(), dims_of(value), bytes_of(value.on(Device::cpu)));
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

std::string manifest_line(const std::string& folder, const std::string& name) {
  const std::string path = folder + "/" + name;
  return fmt::format("{} {} {}\n", checksum_text(xxh3_64_of_file(path)), fs::file_size(path), name);
}

// Before HDF5 sees a byte: on damaged files the library may read nonsense, or never come back.
void verify(const std::string& folder) {
  const std::string stored = read_text_file(folder + "/" + kManifestFile, kMaxManifestBytes);
  for (const char* name : {kRankFile, kIndexFile}) {
    require(fs::exists(folder + "/" + name),
            "{}/{}: the file is missing; remove that folder to use the checkpoint before", folder, name);
    const std::string found = manifest_line(folder, name);
    require(stored.find(found) != std::string::npos,
            "{}/{}: the file is damaged: checksum and size are {}, which {} does not list; remove that "
            "folder to use the "
            "checkpoint before",
            folder, name, found.substr(0, found.rfind(' ')), kManifestFile);
  }
}

void remove_old(const std::string& output, std::int64_t keep) {
  const auto all = complete_checkpoints(output);
  for (std::size_t i = 0; i + static_cast<std::size_t>(keep) < all.size(); ++i) {
    fs::remove(all[i] / kManifestFile);  // first what makes it complete
    fs::remove_all(all[i]);
  }
}

void read_tensor(const Hdf5File& index, const NamedTensor& t) {
  const std::string name = "/" + t.name;
  require(index.exists(name), "{}: tensor {} is missing: the checkpoint belongs to another model",
          index.path(), t.name);
  const Tensor value = Tensor::empty(t.value.shape(), t.value.dtype());
  index.read_dataset(name, value.dtype(), dims_of(value),
                     {static_cast<std::byte*>(value.data()), static_cast<std::size_t>(value.bytes())});
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
  write_file_atomically(target.path() + "/" + kManifestFile,
                        manifest_line(target.path(), kRankFile) + manifest_line(target.path(), kIndexFile));
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
  verify(folder);
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
  const std::int64_t stored = index.int_attribute("/", "tensors");
  require(stored == static_cast<std::int64_t>(tensors.size()),
          "{}: holds {} tensors, but this run has {}: the checkpoint belongs "
          "to another model, adapter or optimizer",
          index.path(), stored, tensors.size());
  for (const NamedTensor& t : tensors) read_tensor(index, t);
}

}  // namespace ridge
