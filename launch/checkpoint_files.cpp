#include "launch/checkpoint_files.h"

#include <fcntl.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <map>
#include <thread>

#include "core/base/error.h"
#include "core/io/checksum.h"
#include "core/io/file.h"
#include "core/io/hdf5.h"
#include "core/io/io_threads.h"
#include "launch/checkpoint.h"

namespace ridge {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;

constexpr std::size_t kMostFailureBytes = 64 << 10;
constexpr std::size_t kMostPartBytes = std::size_t{1} << 30;
constexpr std::size_t kNamedRanks = 8;  // of those that are missing

std::string rank_file(int rank) { return fmt::format("rank-{:05}.h5", rank); }
std::string part_file(int rank) { return fmt::format("rank-{:05}.part", rank); }
std::string failure_file(int rank) { return fmt::format("rank-{:05}.failed", rank); }

// The dataset of a rank file that holds a tensor's k-th box there.
std::string dataset_name(const std::string& tensor, std::size_t boxes, std::size_t k) {
  return boxes == 1 ? "/" + tensor : fmt::format("/{}.box{}", tensor, k);
}

// A chunk of a box, and where its checksum goes.
struct Chunk {
  const std::byte* data;
  std::size_t bytes;
  std::uint64_t position;
  std::uint64_t* checksum;
};

// Lays the file out; the tensors get their boxes with places but without checksums.
void lay_out(const std::string& path, const std::vector<HostPiece>& pieces, CheckpointManifest& part) {
  Hdf5File file = Hdf5File::create(path);
  for (const HostPiece& piece : pieces) {
    StoredTensor tensor{piece.name, piece.dtype, piece.dims, {}};
    for (std::size_t k = 0; k < piece.boxes.size(); ++k) {
      const parallel::Box& box = piece.boxes[k];
      const std::string name = dataset_name(piece.name, piece.boxes.size(), k);
      const std::uint64_t position = file.reserve_dataset(name, piece.dtype, box.extent);
      const auto chunks = static_cast<std::size_t>(chunk_count(bytes_of(tensor, box)));
      tensor.boxes.push_back({0, position, box, std::vector<std::uint64_t>(chunks)});
    }
    part.tensors.push_back(std::move(tensor));
  }
  file.close();
}

std::vector<Chunk> chunks_of(const std::vector<HostPiece>& pieces, CheckpointManifest& part) {
  std::vector<Chunk> chunks;
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    const std::byte* data = pieces[i].data;
    for (StoredBox& stored : part.tensors[i].boxes) {
      const std::int64_t bytes = bytes_of(part.tensors[i], stored.box);
      for (std::size_t k = 0; k < stored.checksums.size(); ++k) {
        const std::int64_t begin = static_cast<std::int64_t>(k) * kChunkBytes;
        chunks.push_back({data + begin, static_cast<std::size_t>(std::min(kChunkBytes, bytes - begin)),
                          stored.position + static_cast<std::uint64_t>(begin), &stored.checksums[k]});
      }
      data += bytes;
    }
  }
  return chunks;
}

void write_chunks(const std::string& path, const std::vector<Chunk>& chunks, int threads,
                  const StopFlag& stop) {
  const FileDescriptor fd(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
  require(fd.get() >= 0, "cannot open '{}': {}", path, errno_text(errno));
  run_on_io_threads(threads, static_cast<std::int64_t>(chunks.size()), [&](int, std::int64_t i) {
    if (stop) throw GivenUp{};
    const Chunk& chunk = chunks[static_cast<std::size_t>(i)];
    const std::span bytes(chunk.data, chunk.bytes);
    *chunk.checksum = xxh3_64(bytes);
    write_fully_at(fd, chunk.position, bytes, path);
  });
  sync_file(fd, path);
}

std::vector<HostPiece> without_empty(std::vector<HostPiece> pieces) {
  for (HostPiece& piece : pieces)
    std::erase_if(piece.boxes, [](const parallel::Box& box) { return box.numel() == 0; });
  std::erase_if(pieces, [](const HostPiece& piece) { return piece.boxes.empty(); });
  return pieces;
}

std::string first_failure(const std::string& folder, int ranks) {
  for (int rank = 0; rank < ranks; ++rank) {
    const std::string path = folder + "/" + failure_file(rank);
    if (!fs::exists(path)) continue;
    const std::string reason = read_text_file(path, kMostFailureBytes);
    return fmt::format("rank {}: {}", rank,
                       reason.empty() ? "could not write its part, nor why: is the disk full?" : reason);
  }
  return {};
}

// Listing the folder sees new files on network file systems sooner than asking for one by name does.
std::vector<int> missing_parts(const std::string& folder, int ranks, bool& failed) {
  std::vector<bool> there(static_cast<std::size_t>(ranks), false);
  for (const auto& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    failed = failed || name.ends_with(".failed");
    int rank = -1;
    if (std::sscanf(name.c_str(), "rank-%d.part", &rank) != 1 || rank < 0 || rank >= ranks) continue;
    if (name == part_file(rank)) there[static_cast<std::size_t>(rank)] = true;
  }
  std::vector<int> missing;
  for (int rank = 0; rank < ranks; ++rank)
    if (!there[static_cast<std::size_t>(rank)]) missing.push_back(rank);
  return missing;
}

[[noreturn]] void fail_missing(const std::string& folder, const std::vector<int>& missing,
                               std::chrono::milliseconds timeout) {
  const std::size_t named = std::min(missing.size(), kNamedRanks);
  const std::string names = fmt::format(
      "{}", fmt::join(missing.begin(), missing.begin() + static_cast<std::ptrdiff_t>(named), ", "));
  fail_user(
      "{}: {} rank(s) have not written their part within {} s, among them {}: output must lie on a file "
      "system that all hosts share",
      folder, missing.size(), timeout.count() / 1000, names);
}

void write_index(const std::string& path, const CheckpointManifest& manifest) {
  Hdf5File file = Hdf5File::create(path);
  for (const StoredTensor& tensor : manifest.tensors) {
    std::map<std::int64_t, std::size_t> boxes_in, done_in;
    for (const StoredBox& stored : tensor.boxes) ++boxes_in[stored.file];
    std::vector<VirtualPiece> pieces;
    for (const StoredBox& stored : tensor.boxes) {
      const std::string name = dataset_name(tensor.name, boxes_in[stored.file], done_in[stored.file]++);
      pieces.push_back({manifest.files[static_cast<std::size_t>(stored.file)].name, name, stored.box.offset,
                        stored.box.extent});
    }
    file.create_virtual("/" + tensor.name, tensor.dtype, tensor.dims, pieces);
  }
  const TrainingState& state = manifest.state;
  file.set_attribute("/", "ridge_format", std::string_view("checkpoint"));
  file.set_attribute("/", "version", kCheckpointVersion);
  file.set_attribute("/", "program", std::string_view(manifest.program));
  file.set_attribute("/", "step", state.step);
  file.set_attribute("/", "tokens", state.tokens);
  file.set_attribute("/", "next_sample", state.next_sample);
  file.set_attribute("/", "seed", state.seed);
  file.set_attribute("/", "layout", std::string_view(state.layout));
  file.set_attribute("/", "config", std::string_view(state.config));
  file.close();
}

}  // namespace

std::uint64_t frame_checksum(const CheckpointManifest& manifest, std::int64_t file, const std::string& path) {
  std::vector<std::pair<std::uint64_t, std::uint64_t>> boxes;  // first byte, end
  for (const StoredTensor& tensor : manifest.tensors) {
    for (const StoredBox& stored : tensor.boxes) {
      if (stored.file != file) continue;
      const auto bytes = static_cast<std::uint64_t>(bytes_of(tensor, stored.box));
      boxes.emplace_back(stored.position, stored.position + bytes);
    }
  }
  std::ranges::sort(boxes);
  const FileDescriptor fd = open_for_reading(path);
  const std::uint64_t size = size_of_file(fd, path);
  boxes.emplace_back(size, size);
  Xxh3 checksum;
  std::vector<std::byte> buffer;
  std::uint64_t at = 0;
  for (const auto& [begin, end] : boxes) {
    for (; at < begin; at += buffer.size()) {
      buffer.resize(std::min<std::uint64_t>(begin - at, kChunkBytes));
      read_fully_at(fd, at, buffer, path);
      checksum.update(buffer);
    }
    at = std::max(at, end);
  }
  return checksum.digest();
}

CheckpointManifest write_rank_file(const std::string& folder, int rank, const std::vector<HostPiece>& pieces,
                                   int threads, const StopFlag& stop) {
  CheckpointManifest part;
  part.program = program_version();
  const std::vector<HostPiece> written = without_empty(pieces);
  if (written.empty()) return part;
  const std::string path = folder + "/" + rank_file(rank);
  lay_out(path, written, part);
  write_chunks(path, chunks_of(written, part), threads, stop);
  part.files.push_back({rank_file(rank), fs::file_size(path), frame_checksum(part, 0, path)});
  return part;
}

void leave_part(const std::string& folder, int rank, const CheckpointManifest& part) {
  write_file_atomically(folder + "/" + part_file(rank), manifest_text(part));
}

void leave_failure(const std::string& folder, int rank, const std::string& reason) noexcept {
  const std::string path = folder + "/" + failure_file(rank);
  try {
    write_file_atomically(path, reason);
  } catch (const std::exception&) {  // an empty file may do where the disk is full
    const FileDescriptor fd(::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0666));
  }
}

std::vector<CheckpointManifest> collect_parts(const std::string& folder, int ranks,
                                              std::chrono::milliseconds timeout, const StopFlag& stop) {
  const auto end = std::chrono::steady_clock::now() + timeout;
  auto pause = 1ms;
  for (bool failed = false;;) {
    const std::vector<int> missing = missing_parts(folder, ranks, failed);
    if (failed) fail_user("{}", first_failure(folder, ranks));
    if (missing.empty()) break;
    if (stop) throw GivenUp{};
    if (std::chrono::steady_clock::now() > end) fail_missing(folder, missing, timeout);
    std::this_thread::sleep_for(pause);
    pause = std::min(2 * pause, 200ms);
  }
  std::vector<CheckpointManifest> parts;
  for (int rank = 0; rank < ranks; ++rank) {
    const std::string path = folder + "/" + part_file(rank);
    parts.push_back(parse_manifest(read_text_file(path, kMostPartBytes), path));
  }
  return parts;
}

void write_joined(const std::string& folder, const TrainingState& state,
                  std::vector<CheckpointManifest> parts) {
  const int ranks = static_cast<int>(parts.size());
  CheckpointManifest manifest = join_manifests(std::move(parts));
  manifest.state = state;
  const std::string index = folder + "/" + kIndexFile;
  write_index(index, manifest);
  manifest.files.push_back({kIndexFile, fs::file_size(index), 0});
  manifest.files.back().frame =
      frame_checksum(manifest, static_cast<std::int64_t>(manifest.files.size()) - 1, index);
  for (int rank = 0; rank < ranks; ++rank) fs::remove(folder + "/" + part_file(rank));
  write_file_atomically(folder + "/" + kManifestFile, manifest_text(manifest));
}

void write_checkpoint_alone(const std::string& output, const TrainingState& state,
                            const std::vector<HostPiece>& pieces, int threads) {
  const std::string folder = checkpoint_folder(output, state.step);
  std::error_code error;
  fs::create_directories(fs::path(folder).parent_path(), error);
  require(!error, "cannot make the folder of '{}': {}", folder, error.message());
  AtomicFolder target(folder);
  write_joined(target.path(), state, {write_rank_file(target.path(), 0, pieces, threads, false)});
  target.commit();
}

}  // namespace ridge
