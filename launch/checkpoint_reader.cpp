// Boxes that are wanted, out of the boxes that were written. Each thread takes one slice of a wanted box
// after another, and reads the chunks under it from whatever files hold them.
#include <algorithm>
#include <cstring>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>

#include "core/base/cuda.h"
#include "core/base/error.h"
#include "core/base/launch.h"
#include "core/io/checksum.h"
#include "core/io/file.h"
#include "core/io/io_threads.h"
#include "core/io/slab.h"
#include "launch/box_runs.h"
#include "launch/checkpoint.h"
#include "launch/checkpoint_files.h"
#include "launch/host_buffer.h"

namespace ridge {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kSliceBytes = std::int64_t{32} << 20;

// The rank files, opened when they are first needed.
class RankFiles {
 public:
  RankFiles(const std::string& folder, const CheckpointManifest& manifest) {
    for (const StoredFile& file : manifest.files)
      files_.push_back({folder + "/" + file.name, file.bytes, {}});
  }

  /// Before HDF5 or anything else sees a byte of it.
  void open(std::int64_t i) {
    File& file = files_[static_cast<std::size_t>(i)];
    if (file.fd.get() >= 0) return;
    require(fs::exists(file.path), "{}: the file is missing; remove that folder to use the checkpoint before",
            file.path);
    file.fd = open_for_reading(file.path);
    const std::uint64_t found = size_of_file(file.fd, file.path);
    require(found == file.bytes,
            "{}: the file is damaged: it has {} bytes, but {} lists {}; remove that folder to use the "
            "checkpoint before",
            file.path, found, kManifestFile, file.bytes);
  }

  const std::string& path(std::int64_t i) const { return files_[static_cast<std::size_t>(i)].path; }

  /// Reads a chunk of a box and holds it to its checksum.
  void read_chunk(const StoredTensor& tensor, const StoredBox& box, std::int64_t chunk,
                  std::span<std::byte> out) const {
    const File& file = files_[static_cast<std::size_t>(box.file)];
    const std::uint64_t position = box.position + static_cast<std::uint64_t>(chunk * kChunkBytes);
    read_fully_at(file.fd, position, out, file.path);
    require(xxh3_64(out) == box.checksums[static_cast<std::size_t>(chunk)],
            "{}: the file is damaged: tensor {}, chunk {} of its box {} at {} ({} bytes from byte {}) has "
            "another checksum; remove that folder to use the checkpoint before",
            file.path, tensor.name, chunk, dims_text(box.box.extent), dims_text(box.box.offset), out.size(),
            position);
  }

 private:
  struct File {
    std::string path;
    std::uint64_t bytes;
    FileDescriptor fd;
  };
  std::vector<File> files_;
};

// A part of a piece that one thread fills: a box whose elements are contiguous in the piece.
struct Slice {
  const StoredTensor* stored;
  parallel::Box box;
  std::byte* to;  // where the piece has it
  std::int64_t bytes;
};

void add_slices(const StoredTensor& stored, const Piece& piece, std::vector<Slice>& slices) {
  const auto size = static_cast<std::int64_t>(size_of(piece.dtype));
  auto* to = static_cast<std::byte*>(piece.value.data());
  for (const parallel::Box& box : piece.boxes) {
    for (const SlabSlice& slab : slices_of(box.extent, kSliceBytes / size)) {
      parallel::Box part{slab.offset, slab.extent};
      for (std::size_t d = 0; d < part.offset.size(); ++d) part.offset[d] += box.offset[d];
      const std::int64_t bytes = part.numel() * size;
      slices.push_back({&stored, std::move(part), to + slab.first * size, bytes});
    }
    to += box.numel() * size;
  }
}

// Reads slices on one thread. What goes to a GPU is put together in one of two buffers while the other one
// is copied.
class SliceReader {
 public:
  SliceReader(const RankFiles& files, Device device, void* native_stream)
      : files_(files), device_(device), stream_(device, "checkpoint", native_stream) {}

  void read(const Slice& slice) {
    if (device_ != Device::cuda) return fill(slice, slice.to);
    Staging& staging = staging_[turn_ ^= 1];
    staging.wait();
    fill(slice, staging.room(slice.bytes));
    const std::byte* from = staging.buffer->data();
    launch(
        stream_, "checkpoint_load", {0, 2 * static_cast<double>(slice.bytes)}, [] {},
        [&] { cuda::copy(slice.to, from, slice.bytes, stream_); });
    staging.event->record(stream_);
  }

 private:
  struct Staging {
    std::optional<HostBuffer> buffer;
    std::optional<cuda::Event> event;

    void wait() const {
      if (event) event->synchronize();
    }
    std::byte* room(std::int64_t bytes) {
      if (!buffer || buffer->bytes() < bytes) {
        buffer.reset();
        buffer.emplace(bytes, Device::cuda);
        if (!event) event.emplace();
      }
      return buffer->data();
    }
  };

  void fill(const Slice& slice, std::byte* to) {
    std::int64_t missing = slice.box.numel();
    for (const StoredBox& from : slice.stored->boxes) {
      const BoxRuns runs(from.box, slice.box);
      if (!runs.empty()) missing -= copy_common(*slice.stored, from, runs, to);
    }
    require(missing == 0, "{}: tensor {}: {} elements of {} at {} are in no file", files_.path(0),
            slice.stored->name, missing, dims_text(slice.box.extent), dims_text(slice.box.offset));
  }

  // Elements that were copied.
  std::int64_t copy_common(const StoredTensor& stored, const StoredBox& from, const BoxRuns& runs,
                           std::byte* to) {
    const auto size = static_cast<std::int64_t>(size_of(stored.dtype));
    const std::int64_t whole = kChunkBytes / size, all = from.box.numel();
    std::int64_t copied = 0;
    for (std::int64_t chunk = runs.first() / whole; chunk * whole < runs.end(); ++chunk) {
      const std::int64_t begin = chunk * whole, end = std::min(begin + whole, all);
      const auto bytes = static_cast<std::size_t>((end - begin) * size);
      bool read = false;
      runs.for_each(begin, end, [&](std::int64_t a, std::int64_t b, std::int64_t count) {
        copied += count;
        if (count == end - begin) {  // all of the chunk in one run: no detour
          files_.read_chunk(stored, from, chunk, {to + b * size, bytes});
          return;
        }
        if (!read) {
          if (!scratch_) scratch_ = std::make_unique_for_overwrite<std::byte[]>(kChunkBytes);
          files_.read_chunk(stored, from, chunk, {scratch_.get(), bytes});
          read = true;
        }
        std::memcpy(to + b * size, scratch_.get() + (a - begin) * size,
                    static_cast<std::size_t>(count * size));
      });
    }
    return copied;
  }

  const RankFiles& files_;
  Device device_;
  Stream stream_;
  std::unique_ptr<std::byte[]> scratch_;
  Staging staging_[2];
  int turn_ = 0;
};

void open_files(RankFiles& files, const std::vector<Slice>& slices) {
  for (const Slice& slice : slices) {
    for (const StoredBox& from : slice.stored->boxes)
      if (boxes_overlap(from.box.offset, from.box.extent, slice.box.offset, slice.box.extent))
        files.open(from.file);
  }
}

void read_slices(RankFiles& files, const std::vector<Slice>& slices, Device device) {
  open_files(files, slices);
  const int threads = io_thread_count();
  void* native = device == Device::cuda ? copy_stream() : nullptr;
  if (device == Device::cuda) {
    cuda::Event before;  // what is queued on the tensors comes first
    before.record(current_stream(device));
    before.hold(Stream(device, "checkpoint", native));
  }
  std::vector<std::unique_ptr<SliceReader>> readers;
  for (int thread = 0; thread < threads; ++thread)
    readers.push_back(std::make_unique<SliceReader>(files, device, native));
  const auto finish = [&] {
    if (device == Device::cuda) cuda::synchronize(Stream(device, "checkpoint", native));
  };
  try {
    run_on_io_threads(threads, static_cast<std::int64_t>(slices.size()), [&](int thread, std::int64_t i) {
      readers[static_cast<std::size_t>(thread)]->read(slices[static_cast<std::size_t>(i)]);
    });
  } catch (...) {
    finish();  // before the buffers go
    throw;
  }
  finish();
}

bool is_optimizer_state(const std::string& name) { return name.starts_with("optimizer/"); }

}  // namespace

CheckpointReader::CheckpointReader(const std::string& folder)
    : folder_(folder), manifest_(read_manifest(folder)) {}

const StoredTensor* CheckpointReader::stored_of(const Piece& piece) const {
  const StoredTensor* stored = manifest_.find(piece.name);
  const std::string path = folder_ + "/" + kManifestFile;
  if (stored == nullptr) {
    require(manifest_.state.weights_only && is_optimizer_state(piece.name),
            "{}: tensor {} {} {} is missing: the checkpoint belongs to another model, adapter or optimizer",
            path, piece.name, name_of(piece.dtype), dims_text(piece.dims));
    return nullptr;
  }
  require(stored->dtype == piece.dtype && stored->dims == piece.dims,
          "{}: tensor {} is {} {}, but this run has {} {}: the checkpoint belongs to another model, adapter "
          "or optimizer",
          path, piece.name, name_of(stored->dtype), dims_text(stored->dims), name_of(piece.dtype),
          dims_text(piece.dims));
  return stored;
}

void CheckpointReader::read_some(const std::vector<Piece>& pieces) const {
  check_pieces(pieces);
  std::vector<Slice> slices;
  Device device = Device::cpu;
  for (const Piece& piece : pieces) {
    const StoredTensor* stored = stored_of(piece);
    if (stored == nullptr || piece.value.device() == Device::meta) continue;
    if (piece.value.device() == Device::cuda) device = Device::cuda;
    add_slices(*stored, piece, slices);
  }
  // The largest first: the threads end together.
  std::ranges::stable_sort(slices, std::greater<>(), &Slice::bytes);
  RankFiles files(folder_, manifest_);
  read_slices(files, slices, device);
}

void CheckpointReader::read(const std::vector<Piece>& pieces, parallel::Communicator& ranks) const {
  std::vector<std::int64_t> used(manifest_.tensors.size(), 0);
  for (const Piece& piece : pieces) {
    if (const StoredTensor* stored = stored_of(piece))
      used[static_cast<std::size_t>(stored - manifest_.tensors.data())] = 1;
  }
  ranks.all_reduce(std::span(used), parallel::Reduce::max);
  const auto unused = std::ranges::count(used, 0);
  const auto first = static_cast<std::size_t>(std::ranges::find(used, 0) - used.begin());
  require(unused == 0,
          "{}/{}: {} of its {} tensors are none of this run's, the first is {}: the checkpoint belongs to "
          "another model, adapter or optimizer",
          folder_, kManifestFile, unused, used.size(), unused == 0 ? "" : manifest_.tensors[first].name);
  read_some(pieces);
}

void CheckpointReader::verify() const {
  RankFiles files(folder_, manifest_);
  struct Chunk {
    const StoredTensor* tensor;
    const StoredBox* box;
    std::int64_t number;
  };
  std::vector<Chunk> chunks;
  for (const StoredTensor& tensor : manifest_.tensors)
    for (const StoredBox& box : tensor.boxes)
      for (std::size_t k = 0; k < box.checksums.size(); ++k)
        chunks.push_back({&tensor, &box, static_cast<std::int64_t>(k)});
  for (std::size_t i = 0; i < manifest_.files.size(); ++i) {
    const auto file = static_cast<std::int64_t>(i);
    files.open(file);
    require(frame_checksum(manifest_, file, files.path(file)) == manifest_.files[i].frame,
            "{}: the file is damaged: its HDF5 structures have another checksum; remove that folder to use "
            "the checkpoint before",
            files.path(file));
  }
  std::vector<std::vector<std::byte>> scratch(static_cast<std::size_t>(io_thread_count()));
  run_on_io_threads(io_thread_count(), static_cast<std::int64_t>(chunks.size()),
                    [&](int thread, std::int64_t i) {
                      const auto& [tensor, box, number] = chunks[static_cast<std::size_t>(i)];
                      const std::int64_t left = bytes_of(*tensor, box->box) - number * kChunkBytes;
                      auto& buffer = scratch[static_cast<std::size_t>(thread)];
                      buffer.resize(static_cast<std::size_t>(std::min(left, kChunkBytes)));
                      files.read_chunk(*tensor, *box, number, buffer);
                    });
}

TrainingState read_checkpoint_state(const std::string& folder) { return read_manifest(folder).state; }

void read_checkpoint_tensors(const std::string& folder, const std::vector<NamedTensor>& tensors) {
  const auto self = parallel::self_communicator();
  CheckpointReader(folder).read(whole_pieces(tensors), *self);
}

}  // namespace ridge
