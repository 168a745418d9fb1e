#include "core/io/tensorboard.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <bit>
#include <cerrno>
#include <filesystem>
#include <system_error>

#include "core/base/error.h"
#include "core/io/checksum.h"
#include "core/io/quote.h"
#include "core/io/tensorboard.pb.h"

namespace ridge {
namespace {

constexpr std::size_t kBufferBytes = 64 << 10;
constexpr std::chrono::seconds kFlushEvery{2};
constexpr int kNameTries = 1000;

double wall_time() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

std::string host_name() {
  std::array<char, 256> name{};
  if (::gethostname(name.data(), name.size() - 1) != 0 || name[0] == '\0') return "localhost";
  return name.data();
}

template <class T>
void append_raw(std::string& text, T value) {
  static_assert(std::endian::native == std::endian::little);
  const auto bytes = std::bit_cast<std::array<char, sizeof(T)>>(value);
  text.append(bytes.data(), bytes.size());
}

std::span<const std::byte> bytes_of(std::string_view text) { return std::as_bytes(std::span(text)); }

std::string record_of(const tensorboard::Event& event) {
  return tensorboard_record(event.SerializeAsString());
}

}  // namespace

std::uint32_t masked_crc32c(std::span<const std::byte> bytes) {
  return std::rotr(crc32c(bytes), 15) + 0xa282ead8u;
}

std::string tensorboard_record(std::string_view payload) {
  std::string record;
  append_raw(record, static_cast<std::uint64_t>(payload.size()));
  append_raw(record, masked_crc32c(bytes_of(record)));
  record += payload;
  append_raw(record, masked_crc32c(bytes_of(payload)));
  return record;
}

EventWriter::EventWriter(const std::string& folder) : flushed_(std::chrono::steady_clock::now()) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  require(!error, "cannot create the folder '{}': {}", folder, error.message());
  const double now = wall_time();
  for (int i = 0; i < kNameTries && fd_.get() < 0; ++i) {  // two runs may start in one second
    path_ = fmt::format("{}/events.out.tfevents.{:010d}.{}.{}.{}", folder, static_cast<std::int64_t>(now),
                        host_name(), ::getpid(), i);
    fd_ = FileDescriptor(::open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC, 0666));
    require(fd_.get() >= 0 || errno == EEXIST, "cannot create '{}': {}", path_, errno_text(errno));
  }
  tensorboard::Event first;
  first.set_wall_time(now);
  first.set_file_version("brain.Event:2");
  buffer_ = record_of(first);
  flush();
}

EventWriter::~EventWriter() {
  try {
    if (fd_.get() >= 0) flush();
  } catch (const UserError&) {  // whoever cares calls flush()
  }
}

void EventWriter::scalar(std::string_view tag, std::int64_t step, double value) {
  check(is_utf8(tag), "a TensorBoard tag is UTF-8");
  tensorboard::Event event;
  event.set_wall_time(wall_time());
  event.set_step(step);
  tensorboard::Summary::Value* scalar = event.mutable_summary()->add_value();
  scalar->set_tag(std::string(tag));
  scalar->set_simple_value(static_cast<float>(value));
  buffer_ += record_of(event);
  const bool late = std::chrono::steady_clock::now() - flushed_ > kFlushEvery;
  if (late || buffer_.size() >= kBufferBytes) flush();
}

void EventWriter::flush() {
  const std::string records = std::exchange(buffer_, {});  // dropped if the write fails: no record twice
  write_fully(fd_, bytes_of(records), path_);
  flushed_ = std::chrono::steady_clock::now();
}

}  // namespace ridge
