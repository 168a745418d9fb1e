#include "launch/checkpoint.h"

#include <algorithm>
#include <filesystem>

#include "core/base/error.h"
#include "core/io/slab.h"
#include "launch/checkpoint_writer.h"

namespace ridge {
namespace {

namespace fs = std::filesystem;

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

std::int64_t elements_of(const Piece& piece) {
  std::int64_t count = 0;
  for (const parallel::Box& box : piece.boxes) {
    if (!box_is_within(box.offset, box.extent, piece.dims))
      fail("{}: a box of {} at {} is not in {}", piece.name, dims_text(box.extent), dims_text(box.offset),
           dims_text(piece.dims));
    count += box.numel();
  }
  return count;
}

}  // namespace

std::vector<Piece> whole_pieces(const std::vector<NamedTensor>& tensors) {
  std::vector<Piece> pieces;
  for (const NamedTensor& t : tensors) {
    std::vector<std::int64_t> dims(t.value.shape().begin(), t.value.shape().end());
    if (dims.empty()) dims.assign(1, 1);
    const parallel::Box all{std::vector<std::int64_t>(dims.size(), 0), dims};
    pieces.push_back({t.name, dims, t.value.dtype(), {all}, t.value});
  }
  return pieces;
}

void check_pieces(const std::vector<Piece>& pieces) {
  for (const Piece& piece : pieces) {
    const bool plain = !piece.name.empty() && piece.name.find_first_of(" \n\r\t") == std::string::npos;
    if (!plain) fail("checkpoint: '{}' is no name for a tensor", piece.name);
    if (piece.dims.empty()) fail("checkpoint: {} has no dims", piece.name);
    if (piece.dtype != piece.value.dtype() || !piece.value.contiguous())
      fail("checkpoint: {} is {}, but its piece is {} and {}contiguous", piece.name, name_of(piece.dtype),
           name_of(piece.value.dtype()), piece.value.contiguous() ? "" : "not ");
    if (elements_of(piece) != piece.value.numel())
      fail("checkpoint: the boxes of {} have {} elements, its piece {}", piece.name, elements_of(piece),
           piece.value.numel());
  }
}

void save_checkpoint(const std::string& output, const TrainingState& state,
                     const std::vector<NamedTensor>& tensors, std::int64_t keep) {
  const auto self = parallel::self_communicator();
  std::vector<NamedTensor> dense;
  for (const NamedTensor& t : tensors) dense.push_back({t.name, t.value.detached().as_contiguous()});
  CheckpointWriter writer(*self, {.output = output, .keep = keep});
  writer.snapshot(state, whole_pieces(dense));
  writer.finish();
}

std::string checkpoint_folder(const std::string& output, std::int64_t step) {
  return (fs::path(output) / "checkpoints" / fmt::format("step-{:08}", step)).string();
}

void remove_old_checkpoints(const std::string& output, std::int64_t keep) {
  const auto all = complete_checkpoints(output);
  for (std::size_t i = 0; i + static_cast<std::size_t>(keep) < all.size(); ++i) {
    fs::remove(all[i] / kManifestFile);  // first what makes it complete
    fs::remove_all(all[i]);
  }
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

}  // namespace ridge
