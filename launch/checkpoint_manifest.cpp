#include "launch/checkpoint_manifest.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>

#include "core/base/error.h"
#include "core/io/checksum.h"
#include "core/io/file.h"
#include "core/io/slab.h"

namespace ridge {
namespace {

using Json = nlohmann::ordered_json;
using Buffer = fmt::memory_buffer;

constexpr std::size_t kMaxManifestBytes = std::size_t{4} << 30;

template <class... Args>
void put(Buffer& out, fmt::format_string<Args...> format, Args&&... args) {
  fmt::format_to(std::back_inserter(out), format, std::forward<Args>(args)...);
}

std::string state_text(const TrainingState& state) {
  const Json json{{"step", state.step},     {"tokens", state.tokens},
                  {"seed", state.seed},     {"next_sample", state.next_sample},
                  {"layout", state.layout}, {"weights_only", state.weights_only},
                  {"base", state.base},     {"config", state.config}};
  return json.dump(-1, ' ', true, Json::error_handler_t::replace);
}

void put_tensor(Buffer& out, const StoredTensor& tensor) {
  put(out, "tensor {} {}", tensor.name, name_of(tensor.dtype));
  for (const std::int64_t dim : tensor.dims) put(out, " {}", dim);
  out.push_back('\n');
  for (const StoredBox& box : tensor.boxes) {
    put(out, "box {} {}", box.file, box.position);
    for (const std::int64_t value : box.box.offset) put(out, " {}", value);
    for (const std::int64_t value : box.box.extent) put(out, " {}", value);
    for (const std::uint64_t checksum : box.checksums) put(out, " {:016x}", checksum);
    out.push_back('\n');
  }
}

}  // namespace

std::string program_version() { return RIDGE_VERSION; }

std::int64_t bytes_of(const StoredTensor& tensor, const parallel::Box& box) {
  return box.numel() * static_cast<std::int64_t>(size_of(tensor.dtype));
}

std::int64_t chunk_count(std::int64_t bytes) { return (bytes + kChunkBytes - 1) / kChunkBytes; }

const StoredTensor* CheckpointManifest::find(std::string_view name) const {
  const auto at = std::ranges::lower_bound(tensors, name, {}, &StoredTensor::name);
  return at != tensors.end() && at->name == name ? &*at : nullptr;
}

std::string manifest_text(const CheckpointManifest& manifest) {
  Buffer out;
  put(out, "ridge-checkpoint {} {}\nstate {}\n", kCheckpointVersion, manifest.program,
      state_text(manifest.state));
  for (const StoredFile& file : manifest.files)
    put(out, "file {} {} {:016x}\n", file.name, file.bytes, file.frame);
  for (const StoredTensor& tensor : manifest.tensors) put_tensor(out, tensor);
  const std::uint64_t checksum = xxh3_64(std::as_bytes(std::span(out.data(), out.size())));
  put(out, "end {:016x}\n", checksum);
  return {out.data(), out.size()};
}

CheckpointManifest read_manifest(const std::string& folder) {
  const std::string path = folder + "/" + kManifestFile;
  require(std::filesystem::exists(path), "{}: the file is missing: that folder is no whole checkpoint", path);
  return parse_manifest(read_text_file(path, kMaxManifestBytes), path);
}

void check_tiling(const StoredTensor& tensor) {
  std::vector<const parallel::Box*> boxes;
  std::int64_t filled = 0;
  for (const StoredBox& stored : tensor.boxes) {
    const parallel::Box& box = stored.box;
    if (!box_is_within(box.offset, box.extent, tensor.dims))
      fail("checkpoint: a box of {} at {} is not in {} {}", dims_text(box.extent), dims_text(box.offset),
           tensor.name, dims_text(tensor.dims));
    boxes.push_back(&box);
    filled += box.numel();
  }
  std::ranges::sort(boxes, {}, &parallel::Box::offset);
  for (std::size_t i = 0; i < boxes.size(); ++i) {
    const parallel::Box& a = *boxes[i];
    for (std::size_t j = i + 1; j < boxes.size(); ++j) {
      const parallel::Box& b = *boxes[j];
      if (b.offset[0] >= a.offset[0] + a.extent[0]) break;  // sorted: nothing behind starts earlier
      if (boxes_overlap(a.offset, a.extent, b.offset, b.extent))
        fail("checkpoint: two ranks write the same elements of {} {}: {} at {} and {} at {}", tensor.name,
             dims_text(tensor.dims), dims_text(a.extent), dims_text(a.offset), dims_text(b.extent),
             dims_text(b.offset));
    }
  }
  const std::int64_t wanted = element_count(tensor.dims).value_or(-1);
  if (filled != wanted)
    fail("checkpoint: the ranks write {} of {} elements of {} {}", filled, wanted, tensor.name,
         dims_text(tensor.dims));
}

CheckpointManifest join_manifests(std::vector<CheckpointManifest> parts) {
  check(!parts.empty(), "a checkpoint of at least one rank");
  CheckpointManifest joined;
  joined.program = parts.front().program;
  joined.state = parts.front().state;
  std::map<std::string, StoredTensor> tensors;
  for (CheckpointManifest& part : parts) {
    require(part.program == joined.program,
            "the ranks run ridge {} and ridge {}: start all of them with the same program", joined.program,
            part.program);
    const auto first = static_cast<std::int64_t>(joined.files.size());
    std::ranges::move(part.files, std::back_inserter(joined.files));
    for (StoredTensor& tensor : part.tensors) {
      StoredTensor& whole = tensors[tensor.name];
      if (whole.name.empty()) whole = {tensor.name, tensor.dtype, tensor.dims, {}};
      if (whole.dtype != tensor.dtype || whole.dims != tensor.dims)
        fail("checkpoint: ranks disagree about {}: {} {} and {} {}", tensor.name, name_of(whole.dtype),
             dims_text(whole.dims), name_of(tensor.dtype), dims_text(tensor.dims));
      for (StoredBox& box : tensor.boxes) {
        box.file += first;
        whole.boxes.push_back(std::move(box));
      }
    }
  }
  for (auto& [name, tensor] : tensors) {
    check_tiling(tensor);
    joined.tensors.push_back(std::move(tensor));
  }
  return joined;
}

}  // namespace ridge
