#include "core/io/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <system_error>
#include <utility>

#include "core/base/error.h"

namespace ridge {
namespace {

constexpr std::size_t kTransferBytes = std::size_t{1} << 30;  // Linux moves at most 2 GiB - 4 KiB a call

// `write_some(bytes, done)` is write() or pwrite(); both may write less than asked or be interrupted.
template <class WriteSome>
void write_all(std::span<const std::byte> bytes, const std::string& path, WriteSome write_some) {
  for (std::size_t done = 0; done < bytes.size();) {
    const ssize_t n = write_some(bytes.subspan(done, std::min(kTransferBytes, bytes.size() - done)), done);
    if (n < 0 && errno == EINTR) continue;
    const int error = n < 0 ? errno : ENOSPC;
    require(n > 0, "cannot write '{}' ({} of {} bytes done): {}", path, done, bytes.size(),
            errno_text(error));
    done += static_cast<std::size_t>(n);
  }
}

}  // namespace

std::string errno_text(int error) { return std::generic_category().message(error); }

FileDescriptor::FileDescriptor(FileDescriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}

FileDescriptor& FileDescriptor::operator=(FileDescriptor&& other) noexcept {
  std::swap(fd_, other.fd_);
  return *this;
}

FileDescriptor::~FileDescriptor() { close(); }

bool FileDescriptor::close() {
  const int fd = std::exchange(fd_, -1);
  return fd < 0 || ::close(fd) == 0;
}

FileDescriptor open_for_reading(const std::string& path) {
  FileDescriptor fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));  // a FIFO must not block
  require(fd.get() >= 0, "cannot open '{}': {}", path, errno_text(errno));
  return fd;
}

std::uint64_t size_of_file(const FileDescriptor& fd, const std::string& path) {
  struct stat info {};
  const bool known = ::fstat(fd.get(), &info) == 0;
  require(known, "cannot open '{}': {}", path, errno_text(errno));
  require(!S_ISDIR(info.st_mode), "cannot read '{}': it is a folder, not a file", path);
  require(S_ISREG(info.st_mode), "cannot read '{}': it is not a regular file", path);
  return static_cast<std::uint64_t>(info.st_size);
}

void read_fully_at(const FileDescriptor& fd, std::uint64_t offset, std::span<std::byte> bytes,
                   const std::string& path) {
  for (std::size_t done = 0; done < bytes.size();) {
    const std::size_t part = std::min(kTransferBytes, bytes.size() - done);
    const ssize_t n = ::pread(fd.get(), bytes.data() + done, part, static_cast<off_t>(offset + done));
    if (n < 0 && errno == EINTR) continue;
    require(n >= 0, "cannot read '{}': {}", path, errno_text(errno));
    require(n > 0, "cannot read '{}': it ends at byte {}, wanted {} bytes from {}", path, offset + done,
            bytes.size(), offset);
    done += static_cast<std::size_t>(n);
  }
}

MappedFile MappedFile::open(const std::string& path) {
  const FileDescriptor fd = open_for_reading(path);
  const std::uint64_t size = size_of_file(fd, path);
  MappedFile file;
  file.path_ = path;
  if (size == 0) return file;
  void* base = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd.get(), 0);
  require(base != MAP_FAILED, "cannot map '{}' ({} bytes): {}", path, size, errno_text(errno));
  file.bytes_ = {static_cast<const std::byte*>(base), size};
  return file;
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)), bytes_(std::exchange(other.bytes_, {})) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

MappedFile::~MappedFile() {
  if (!bytes_.empty()) ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

void prefetch(std::span<const std::byte> bytes) {
  if (bytes.empty()) return;
  const auto page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto begin = reinterpret_cast<std::uintptr_t>(bytes.data());
  const std::uintptr_t aligned = begin / page * page;  // madvise wants the start of a page
  ::madvise(reinterpret_cast<void*>(aligned), bytes.size() + (begin - aligned), MADV_WILLNEED);
}

std::string read_text_file(const std::string& path, std::size_t max_bytes) {
  const FileDescriptor fd = open_for_reading(path);
  const std::uint64_t size = size_of_file(fd, path);
  require(size <= max_bytes, "'{}' has {} bytes; at most {} are read", path, size, max_bytes);
  std::string text(size, '\0');
  std::size_t done = 0;
  while (done < text.size()) {
    const ssize_t n = ::read(fd.get(), text.data() + done, text.size() - done);
    if (n < 0 && errno == EINTR) continue;
    require(n >= 0, "cannot read '{}': {}", path, errno_text(errno));
    if (n == 0) break;  // the file shrank since fstat
    done += static_cast<std::size_t>(n);
  }
  text.resize(done);
  return text;
}

void write_fully(const FileDescriptor& fd, std::span<const std::byte> bytes, const std::string& path) {
  write_all(bytes, path, [&](std::span<const std::byte> part, std::size_t) {
    return ::write(fd.get(), part.data(), part.size());
  });
}

void write_fully_at(const FileDescriptor& fd, std::uint64_t offset, std::span<const std::byte> bytes,
                    const std::string& path) {
  write_all(bytes, path, [&](std::span<const std::byte> part, std::size_t done) {
    return ::pwrite(fd.get(), part.data(), part.size(), static_cast<off_t>(offset + done));
  });
}

}  // namespace ridge
