#include "launch/checkpoint_writer.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <random>

#include "core/base/error.h"
#include "core/base/launch.h"
#include "core/io/file.h"
#include "core/io/io_threads.h"

namespace ridge {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

constexpr std::int64_t kPlaceBytes = 64;  // pieces begin at multiples of it

// Adds the time until it goes.
class Stopwatch {
 public:
  explicit Stopwatch(double& seconds) : seconds_(seconds) {}
  ~Stopwatch() { seconds_ += std::chrono::duration<double>(Clock::now() - begin_).count(); }

 private:
  double& seconds_;
  Clock::time_point begin_ = Clock::now();
};

std::int64_t room_of(const Piece& piece) {
  return (piece.value.bytes() + kPlaceBytes - 1) / kPlaceBytes * kPlaceBytes;
}

Device device_of(const std::vector<Piece>& pieces) {
  return pieces.empty() ? Device::cpu : pieces.front().value.device();
}

std::vector<Piece> written_ones(const std::vector<Piece>& pieces) {
  std::vector<Piece> kept;
  for (const Piece& piece : pieces)
    if (piece.writes && piece.value.numel() > 0) kept.push_back(piece);
  return kept;
}

// A name that no other run, not even one that was killed here, has taken.
std::string shared_mark(parallel::Communicator& ranks) {
  std::random_device random;
  std::int64_t mark = static_cast<std::int64_t>(random()) << 16 ^ static_cast<std::int64_t>(random());
  ranks.broadcast(std::span(&mark, 1), 0);
  return fmt::format("{:012x}", static_cast<std::uint64_t>(mark) & 0xFFFFFFFFFFFF);
}

void make_folder(const std::string& folder) {
  std::error_code error;
  fs::create_directories(folder, error);
  require(!error, "cannot make the folder '{}': {}", folder, error.message());
}

}  // namespace

struct CheckpointWriter::Copy {
  std::vector<Piece> pieces;  // their storage stays until the copy is done
  cuda::Event done;
  cuda::Event update{true};  // the compute stream came to the update
  cuda::Event freed{true};   // and went on
  bool released = false;
};

CheckpointWriter::CheckpointWriter(parallel::Communicator& ranks, Options options)
    : ranks_(ranks), options_(std::move(options)), mark_(shared_mark(ranks)) {
  check(options_.keep > 0, "a run keeps at least one checkpoint");
}

CheckpointWriter::~CheckpointWriter() {
  stop_ = true;
  if (under_way_.valid()) under_way_.wait();
}

void CheckpointWriter::reserve(const std::vector<Piece>& pieces) {
  std::int64_t bytes = 0;
  for (const Piece& piece : written_ones(pieces)) bytes += room_of(piece);
  if (bytes <= buffer_.bytes()) return;
  buffer_ = {};  // first, so that there is room
  buffer_ = HostBuffer(bytes, device_of(pieces));
}

void CheckpointWriter::snapshot(const TrainingState& state, const std::vector<Piece>& pieces) {
  host_seconds_ = 0;
  const Stopwatch watch(host_seconds_);
  finish();
  copy_.reset();
  if (device_of(pieces) == Device::meta) return;
  check_pieces(pieces);
  reserve(pieces);
  std::vector<HostPiece> copies = copy_to_host(written_ones(pieces));
  under_way_ =
      std::async(std::launch::async, [this, state, copies = std::move(copies)] { write(state, copies); });
}

std::vector<HostPiece> CheckpointWriter::copy_to_host(const std::vector<Piece>& pieces) {
  std::vector<HostPiece> copies;
  const std::byte* place = buffer_.data();
  double bytes = 0;
  for (const Piece& piece : pieces) {
    copies.push_back({piece.name, piece.dims, piece.dtype, piece.boxes, place});
    place += room_of(piece);
    bytes += static_cast<double>(piece.value.bytes());
  }
  if (device_of(pieces) == Device::cuda) {
    copy_from_gpu(pieces, copies);
    return copies;
  }
  launch(current_stream(Device::cpu), "checkpoint_snapshot", {0, 2 * bytes}, [&] {
    for (std::size_t i = 0; i < pieces.size(); ++i)
      std::memcpy(const_cast<std::byte*>(copies[i].data), pieces[i].value.data(),
                  static_cast<std::size_t>(pieces[i].value.bytes()));
  });
  return copies;
}

void CheckpointWriter::copy_from_gpu(const std::vector<Piece>& pieces, const std::vector<HostPiece>& copies) {
  copy_ = std::make_unique<Copy>();
  copy_->pieces = pieces;
  Stream stream(Device::cuda, "checkpoint", copy_stream());
  cuda::Event before;
  before.record(current_stream(Device::cuda));
  before.hold(stream);
  double bytes = 0;
  for (const Piece& piece : pieces) bytes += 2 * static_cast<double>(piece.value.bytes());
  launch(
      stream, "checkpoint_snapshot", {0, bytes}, [] {},
      [&] {
        for (std::size_t i = 0; i < pieces.size(); ++i)
          cuda::copy(const_cast<std::byte*>(copies[i].data), pieces[i].value.data(), pieces[i].value.bytes(),
                     stream);
      });
  copy_->done.record(stream);
}

void CheckpointWriter::release_before_update() {
  if (!copy_ || copy_->released) return;
  const Stopwatch watch(host_seconds_);
  const Stream& compute = current_stream(Device::cuda);
  copy_->update.record(compute);
  copy_->done.hold(compute);
  copy_->freed.record(compute);
  copy_->released = true;
}

double CheckpointWriter::stall_seconds() const {
  if (!copy_ || !copy_->released) return host_seconds_;
  copy_->freed.synchronize();
  return host_seconds_ + 1e-9 * copy_->freed.nanoseconds_since(copy_->update);
}

std::string CheckpointWriter::temporary_folder(std::int64_t step) const {
  return fmt::format("{}.tmp-{}", checkpoint_folder(options_.output, step), mark_);
}

// On the thread.
void CheckpointWriter::write(const TrainingState& state, const std::vector<HostPiece>& pieces) {
  try {
    make_folder(temporary_folder(state.step));
    if (copy_) {
      current_stream(Device::cuda).native();  // binds this thread to the rank's GPU
      copy_->done.synchronize();
    }
    write_and_commit(state, pieces);
  } catch (const GivenUp&) {
  } catch (const std::exception& error) {
    leave_failure(temporary_folder(state.step), ranks_.rank(), error.what());
    throw;
  }
}

void CheckpointWriter::write_part(const std::string& folder, const std::vector<HostPiece>& pieces) {
  const int usual = copy_ ? io_thread_count() : 1;
  const int threads = options_.threads > 0 ? options_.threads : usual;
  leave_part(folder, ranks_.rank(), write_rank_file(folder, ranks_.rank(), pieces, threads, stop_));
}

void CheckpointWriter::write_and_commit(const TrainingState& state, const std::vector<HostPiece>& pieces) {
  const std::string folder = temporary_folder(state.step);
  if (ranks_.rank() != 0) return write_part(folder, pieces);
  AtomicFolder target = AtomicFolder::adopt(checkpoint_folder(options_.output, state.step), folder);
  write_part(folder, pieces);
  write_joined(folder, state, collect_parts(folder, ranks_.size(), options_.timeout, stop_));
  target.commit();
  remove_old_checkpoints(options_.output, options_.keep);
}

bool CheckpointWriter::writing() const {
  return under_way_.valid() && under_way_.wait_for(std::chrono::seconds(0)) != std::future_status::ready;
}

void CheckpointWriter::finish() {
  if (!under_way_.valid()) return;
  std::exception_ptr failure;
  try {
    under_way_.get();
  } catch (...) {
    failure = std::current_exception();
  }
  std::int64_t failed = failure ? 1 : 0;
  ranks_.all_reduce(std::span(&failed, 1), parallel::Reduce::max);
  if (failure) std::rethrow_exception(failure);
  require(failed == 0, "checkpoint: another rank could not write its part");
}

}  // namespace ridge
