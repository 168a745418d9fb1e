// safetensors files: https://github.com/huggingface/safetensors (8-byte header length, JSON header, data).
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/dtype.h"
#include "core/io/file.h"

namespace ridge {

/// One tensor of a file: a name, a type, a shape, and bytes that something else owns.
struct TensorEntry {
  std::string name;
  std::string dtype;                ///< as the file spells it: "F32", "BF16", "F8_E4M3", ...
  std::vector<std::int64_t> shape;  ///< row-major; empty for a scalar
  std::span<const std::byte> data;  ///< little-endian; aligned to 1 byte only: copy with memcpy

  /// The same type of ours; none for those that we do not compute with (F8_*, BOOL, U16, ...).
  std::optional<DType> type() const;
};

/// An entry of one of our types, for writing.
TensorEntry make_tensor_entry(std::string name, DType dtype, std::vector<std::int64_t> shape,
                              std::span<const std::byte> data = {});

/// The safetensors spelling of a dtype of ours.
std::string_view safetensors_name(DType dtype);

/// A file mapped and checked as a whole: every byte of the data belongs to exactly one tensor.
class SafetensorsFile {
 public:
  /// UserError names the file, the tensor and both values of whatever does not agree.
  static SafetensorsFile open(const std::string& path);
  /// The same for bytes in memory, which must outlive the object; `name` stands for the file in messages.
  static SafetensorsFile parse(std::span<const std::byte> bytes, std::string name);

  /// All tensors, sorted by name.
  const std::vector<TensorEntry>& entries() const { return entries_; }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }
  /// The tensor, or null.
  const TensorEntry* find(std::string_view name) const;
  /// The tensor; UserError when the file has none of that name.
  const TensorEntry& at(std::string_view name) const;
  const std::string& path() const { return path_; }

 private:
  SafetensorsFile() = default;
  std::string path_;
  std::optional<MappedFile> mapping_;
  std::vector<TensorEntry> entries_;
  std::map<std::string, std::string> metadata_;
};

/// What Hugging Face loaders expect to find.
std::map<std::string, std::string> default_safetensors_metadata();

/// Writes a file whose tensors arrive one by one, in any order. Widest types first, then by name, as the
/// reference writer lays them out; the file appears under its name only in finish().
class SafetensorsWriter {
 public:
  /// `tensors` declares names, types and shapes; their data is ignored.
  SafetensorsWriter(const std::string& path, std::span<const TensorEntry> tensors,
                    const std::map<std::string, std::string>& metadata = default_safetensors_metadata());
  /// Error unless `name` was declared, with as many bytes, and not written before.
  void write(std::string_view name, std::span<const std::byte> data);
  /// Error unless every declared tensor was written.
  void finish();

 private:
  struct Slot {
    std::uint64_t offset;  // bytes from the start of the file
    std::uint64_t size;
    bool written;
  };
  AtomicFile file_;
  std::map<std::string, Slot, std::less<>> slots_;
};

/// Writes the entries with their data in one go; an existing file is replaced only by a whole new one.
void write_safetensors(const std::string& path, std::span<const TensorEntry> entries,
                       const std::map<std::string, std::string>& metadata = default_safetensors_metadata());

}  // namespace ridge
