// Files: read-only mappings, bounded text, and writes that are whole or absent.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace ridge {

/// The system's words for an errno value.
std::string errno_text(int error);

/// An open file descriptor, closed when the object goes.
class FileDescriptor {
 public:
  FileDescriptor() = default;
  explicit FileDescriptor(int fd) : fd_(fd) {}
  FileDescriptor(FileDescriptor&& other) noexcept;
  FileDescriptor& operator=(FileDescriptor&& other) noexcept;
  ~FileDescriptor();
  int get() const { return fd_; }
  /// Closes now; true when the system reported no late write error.
  bool close();

 private:
  int fd_ = -1;
};

/// A regular file mapped read-only. The bytes live as long as the object; an empty file has an empty span.
class MappedFile {
 public:
  /// UserError with path and reason when the file cannot be opened, is not a regular file or cannot be
  /// mapped.
  static MappedFile open(const std::string& path);
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  std::span<const std::byte> bytes() const { return bytes_; }
  const std::string& path() const { return path_; }

 private:
  MappedFile() = default;
  std::string path_;
  std::span<const std::byte> bytes_;
};

/// Asks the system to read mapped `bytes` ahead; a hint, so it cannot fail.
void prefetch(std::span<const std::byte> bytes);

/// The whole content of a file; UserError when it is missing, unreadable or longer than `max_bytes`.
std::string read_text_file(const std::string& path, std::size_t max_bytes);

/// A regular file, opened to be read; UserError names `path` and the reason.
FileDescriptor open_for_reading(const std::string& path);
std::uint64_t size_of_file(const FileDescriptor& fd, const std::string& path);
/// Fills `bytes` from `offset` on; UserError names `path` where the file ends before. Any thread.
void read_fully_at(const FileDescriptor& fd, std::uint64_t offset, std::span<std::byte> bytes,
                   const std::string& path);

/// Writes all of `bytes` at the descriptor's position, or at `offset`; UserError names `path` and the reason.
void write_fully(const FileDescriptor& fd, std::span<const std::byte> bytes, const std::string& path);
void write_fully_at(const FileDescriptor& fd, std::uint64_t offset, std::span<const std::byte> bytes,
                    const std::string& path);

/// A new file written beside `path` under a temporary name: commit() syncs it and renames it to `path`.
/// Until then, and after any failure, an older file at `path` stays as it was and the temporary is removed.
class AtomicFile {
 public:
  explicit AtomicFile(std::string path);
  AtomicFile(AtomicFile&& other) noexcept;
  AtomicFile& operator=(AtomicFile&&) = delete;
  ~AtomicFile();

  void write(std::span<const std::byte> bytes);
  void write(std::string_view text) { write(std::as_bytes(std::span(text))); }
  void write_at(std::uint64_t offset, std::span<const std::byte> bytes);
  void commit();

  const std::string& path() const { return path_; }
  /// The name until commit(), for libraries that open files by name.
  const std::string& temporary_path() const { return temporary_; }

 private:
  std::string path_, temporary_;
  FileDescriptor fd_;
};

void write_file_atomically(const std::string& path, std::span<const std::byte> bytes);
void write_file_atomically(const std::string& path, std::string_view text);

/// A folder built under `<path>.tmp-<pid>`: commit() syncs its files and renames it to `path`, replacing what
/// was there in one step. An uncommitted one is removed with its content.
class AtomicFolder {
 public:
  /// UserError when the parent does not exist or cannot be written.
  explicit AtomicFolder(std::string path);
  /// One that others have built under the name `temporary`, beside `path`.
  static AtomicFolder adopt(std::string path, std::string temporary);
  AtomicFolder(const AtomicFolder&) = delete;
  ~AtomicFolder();

  /// Where to put the files until commit().
  const std::string& path() const { return temporary_; }
  const std::string& final_path() const { return path_; }
  void commit();

 private:
  AtomicFolder(std::string path, std::string temporary);
  std::string path_, temporary_;
};

/// Waits until what was written to an open file is on disk.
void sync_file(const FileDescriptor& fd, const std::string& path);

/// Makes a finished file durable and gives it its final name: fsync, rename, fsync of the folder.
void sync_and_rename(const std::string& temporary, const std::string& path);

}  // namespace ridge
