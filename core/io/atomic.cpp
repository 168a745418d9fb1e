#include <fcntl.h>
#include <linux/fs.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <system_error>
#include <utility>

#include "core/base/error.h"
#include "core/io/file.h"

namespace ridge {
namespace {

namespace fs = std::filesystem;

constexpr int kNameTries = 1000;  // other threads of this process, and leftovers of dead ones with our pid

std::string without_trailing_slash(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path;
}

std::string parent_of(const std::string& path) {
  const fs::path parent = fs::path(path).parent_path();
  return parent.empty() ? "." : parent.string();
}

// `make(name)` creates exclusively and returns false with errno set; the name that it took is returned.
template <class Make>
std::string make_temporary(const std::string& path, Make make) {
  const std::string stem = fmt::format("{}.tmp-{}", path, ::getpid());
  for (int i = 0; i < kNameTries; ++i) {
    std::string name = i == 0 ? stem : fmt::format("{}-{}", stem, i);
    if (make(name)) return name;
    require(errno == EEXIST, "cannot create '{}': {}", name, errno_text(errno));
  }
  fail_user("cannot create '{}': {} leftovers of that name exist; remove them", stem, kNameTries);
}

void sync_path(const std::string& path, int flags) {
  const FileDescriptor fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | flags));
  require(fd.get() >= 0, "cannot open '{}' to sync it: {}", path, errno_text(errno));
  sync_file(fd, path);
}

void sync_tree(const std::string& folder) {
  for (const fs::directory_entry& entry : fs::recursive_directory_iterator(folder)) {
    if (entry.is_symlink()) continue;
    if (entry.is_directory()) sync_path(entry.path().string(), O_DIRECTORY);
    if (entry.is_regular_file()) sync_path(entry.path().string(), 0);
  }
  sync_path(folder, O_DIRECTORY);
}

// After this `temporary` holds what was at `path`. False where the file system cannot exchange names.
bool exchange_names(const std::string& temporary, const std::string& path) {
  if (::renameat2(AT_FDCWD, temporary.c_str(), AT_FDCWD, path.c_str(), RENAME_EXCHANGE) == 0) return true;
  require(errno == EINVAL || errno == ENOSYS || errno == ENOTSUP, "cannot replace '{}': {}", path,
          errno_text(errno));
  return false;
}

// The old folder steps aside first: between the two renames there is none at `path`, but both are on disk.
void replace_in_two_steps(const std::string& temporary, const std::string& path) {
  const std::string aside = temporary + ".old";
  const bool moved = ::rename(path.c_str(), aside.c_str()) == 0;
  require(moved, "cannot move '{}' aside: {}", path, errno_text(errno));
  if (::rename(temporary.c_str(), path.c_str()) != 0) {
    const int error = errno;
    const bool restored = ::rename(aside.c_str(), path.c_str()) == 0;
    fail_user("cannot rename '{}' to '{}': {}; the old folder is at '{}'", temporary, path, errno_text(error),
              restored ? path : aside);
  }
  std::error_code ignored;
  fs::remove_all(aside, ignored);
}

}  // namespace

AtomicFile::AtomicFile(std::string path) : path_(std::move(path)) {
  temporary_ = make_temporary(path_, [&](const std::string& name) {
    fd_ = FileDescriptor(::open(name.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
    return fd_.get() >= 0;
  });
}

AtomicFile::AtomicFile(AtomicFile&& other) noexcept
    : path_(std::move(other.path_)),
      temporary_(std::exchange(other.temporary_, {})),
      fd_(std::move(other.fd_)) {}

AtomicFile::~AtomicFile() {
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

void AtomicFile::write(std::span<const std::byte> bytes) { write_fully(fd_, bytes, path_); }

void AtomicFile::write_at(std::uint64_t offset, std::span<const std::byte> bytes) {
  write_fully_at(fd_, offset, bytes, path_);
}

void AtomicFile::commit() {
  check(!temporary_.empty(), "an AtomicFile is committed once");
  const bool closed = fd_.close();
  require(closed, "cannot write '{}': {}", path_, errno_text(errno));
  sync_and_rename(temporary_, path_);
  temporary_.clear();
}

void sync_file(const FileDescriptor& fd, const std::string& path) {
  // Some network file systems cannot sync a folder and say EINVAL.
  const bool synced = ::fsync(fd.get()) == 0 || errno == EINVAL;  // first: arguments have no order
  require(synced, "cannot sync '{}': {}", path, errno_text(errno));
}

void sync_and_rename(const std::string& temporary, const std::string& path) {
  sync_path(temporary, 0);
  const bool renamed = ::rename(temporary.c_str(), path.c_str()) == 0;
  require(renamed, "cannot rename '{}' to '{}': {}", temporary, path, errno_text(errno));
  sync_path(parent_of(path), O_DIRECTORY);
}

void write_file_atomically(const std::string& path, std::span<const std::byte> bytes) {
  AtomicFile file(path);
  file.write(bytes);
  file.commit();
}

void write_file_atomically(const std::string& path, std::string_view text) {
  write_file_atomically(path, std::as_bytes(std::span(text)));
}

AtomicFolder::AtomicFolder(std::string path) : path_(without_trailing_slash(std::move(path))) {
  require(!fs::exists(path_) || fs::is_directory(path_), "cannot write the folder '{}': a file has that name",
          path_);
  temporary_ =
      make_temporary(path_, [](const std::string& name) { return ::mkdir(name.c_str(), 0777) == 0; });
}

AtomicFolder::AtomicFolder(std::string path, std::string temporary)
    : path_(std::move(path)), temporary_(std::move(temporary)) {}

AtomicFolder AtomicFolder::adopt(std::string path, std::string temporary) {
  return {without_trailing_slash(std::move(path)), std::move(temporary)};
}

AtomicFolder::~AtomicFolder() {
  std::error_code ignored;
  if (!temporary_.empty()) fs::remove_all(temporary_, ignored);
}

void AtomicFolder::commit() {
  check(!temporary_.empty(), "an AtomicFolder is committed once");
  sync_tree(temporary_);
  const bool taken = ::access(path_.c_str(), F_OK) == 0;
  if (taken && !exchange_names(temporary_, path_)) {
    replace_in_two_steps(temporary_, path_);
  } else if (!taken) {
    const bool renamed = ::rename(temporary_.c_str(), path_.c_str()) == 0;
    require(renamed, "cannot rename '{}' to '{}': {}", temporary_, path_, errno_text(errno));
  }
  sync_path(parent_of(path_), O_DIRECTORY);
  std::error_code ignored;
  if (taken) fs::remove_all(temporary_, ignored);  // after an exchange this is the old folder
  temporary_.clear();
}

}  // namespace ridge
