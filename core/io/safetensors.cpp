#include "core/io/safetensors.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <utility>

#include "core/base/error.h"
#include "core/io/quote.h"
#include "core/io/safetensors_header.h"
#include "core/io/safetensors_types.h"

namespace ridge {
namespace {

constexpr std::uint64_t kLengthBytes = 8;
constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;

struct Parts {
  std::string_view json;
  std::span<const std::byte> data;
};

Parts split(std::span<const std::byte> bytes, const std::string& file) {
  if (bytes.size() < kLengthBytes) {
    fail_safetensors(file,
                     fmt::format("it has {} bytes, fewer than the 8 of the header length", bytes.size()));
  }
  std::uint64_t length = 0;
  std::memcpy(&length, bytes.data(), sizeof(length));
  if (length > kMaxHeaderBytes) {
    fail_safetensors(
        file, fmt::format("its header length is {}, more than the {} allowed", length, kMaxHeaderBytes));
  }
  if (length > bytes.size() - kLengthBytes) {
    fail_safetensors(
        file, fmt::format("its header length is {}, but only {} bytes follow; is the file cut short?", length,
                          bytes.size() - kLengthBytes));
  }
  const char* json = reinterpret_cast<const char*>(bytes.data()) + kLengthBytes;
  return {{json, length}, bytes.subspan(kLengthBytes + length)};
}

std::string shape_text(const std::vector<std::int64_t>& shape) {
  std::string text;
  for (const std::int64_t dim : shape) text += fmt::format("{}{}", text.empty() ? "" : ", ", dim);
  return "[" + text + "]";
}

// Bytes that dtype and shape ask for.
std::uint64_t item_bytes(const SafetensorsItem& item, const std::string& file) {
  const SafetensorsType* type = find_safetensors_type(item.dtype);
  if (type == nullptr) {
    fail_safetensors(file,
                     fmt::format("tensor {} has the unknown dtype {}", shown(item.name), shown(item.dtype)));
  }
  const auto bytes = safetensors_bytes(*type, item.shape);
  if (!bytes) {
    fail_safetensors(
        file, fmt::format("tensor {}: dtype {} and shape {} do not make a size (overflow or part of a byte)",
                          shown(item.name), item.dtype, shape_text(item.shape)));
  }
  return *bytes;
}

void check_item(const SafetensorsItem& item, const std::string& file) {
  if (item.end < item.begin) {
    fail_safetensors(file, fmt::format("tensor {}: data_offsets [{}, {}] end before they begin",
                                       shown(item.name), item.begin, item.end));
  }
  const std::uint64_t bytes = item_bytes(item, file);
  if (item.end - item.begin != bytes) {
    fail_safetensors(
        file, fmt::format("tensor {}: data_offsets [{}, {}] hold {} bytes, but dtype {} and shape {} need {}",
                          shown(item.name), item.begin, item.end, item.end - item.begin, item.dtype,
                          shape_text(item.shape), bytes));
  }
}

// In order of offset the tensors must tile the data: no hole, no overlap, nothing behind the last.
void check_tiling(std::vector<SafetensorsItem>& items, std::uint64_t data_bytes, const std::string& file) {
  std::sort(items.begin(), items.end(), [](const SafetensorsItem& a, const SafetensorsItem& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  std::uint64_t end = 0;
  for (const SafetensorsItem& item : items) {
    if (item.begin != end) {
      fail_safetensors(
          file, fmt::format("tensor {} begins at byte {} of the data instead of {}: {}", shown(item.name),
                            item.begin, end, item.begin > end ? "a hole" : "an overlap"));
    }
    check_item(item, file);
    end = item.end;
  }
  if (end != data_bytes) {
    fail_safetensors(
        file, fmt::format("its tensors need {} bytes of data, but {} follow the header; is the file {}?", end,
                          data_bytes, end > data_bytes ? "cut short" : "damaged"));
  }
}

std::vector<TensorEntry> make_entries(std::vector<SafetensorsItem> items, std::span<const std::byte> data) {
  std::vector<TensorEntry> entries;
  entries.reserve(items.size());
  for (SafetensorsItem& item : items) {
    entries.push_back({std::move(item.name), std::move(item.dtype), std::move(item.shape),
                       data.subspan(item.begin, item.end - item.begin)});
  }
  std::ranges::sort(entries, {}, &TensorEntry::name);
  return entries;
}

SafetensorsItem declared_item(const TensorEntry& entry) {
  const SafetensorsType* type = find_safetensors_type(entry.dtype);
  if (type == nullptr) fail("tensor {} has no safetensors dtype: {}", shown(entry.name), shown(entry.dtype));
  const auto bytes = safetensors_bytes(*type, entry.shape);
  if (!bytes)
    fail("tensor {}: shape {} of {} makes no size", shown(entry.name), shape_text(entry.shape), entry.dtype);
  return {entry.name, entry.dtype, entry.shape, 0, *bytes};
}

// The reference's order: widest type first, then names ascending; offsets follow from it.
std::vector<SafetensorsItem> lay_out(std::span<const TensorEntry> tensors) {
  std::vector<SafetensorsItem> items;
  for (const TensorEntry& tensor : tensors) items.push_back(declared_item(tensor));
  std::ranges::sort(items, [](const SafetensorsItem& a, const SafetensorsItem& b) {
    const int order_a = find_safetensors_type(a.dtype)->order,
              order_b = find_safetensors_type(b.dtype)->order;
    return order_a != order_b ? order_a > order_b : a.name < b.name;
  });
  std::uint64_t offset = 0;
  for (SafetensorsItem& item : items) {
    item.begin = std::exchange(offset, offset + item.end);
    item.end = offset;
  }
  return items;
}

}  // namespace

std::optional<DType> TensorEntry::type() const {
  const SafetensorsType* found = find_safetensors_type(dtype);
  return found == nullptr ? std::nullopt : found->dtype;
}

TensorEntry make_tensor_entry(std::string name, DType dtype, std::vector<std::int64_t> shape,
                              std::span<const std::byte> data) {
  return {std::move(name), std::string(safetensors_name(dtype)), std::move(shape), data};
}

std::string_view safetensors_name(DType dtype) { return safetensors_type(dtype).name; }

SafetensorsFile SafetensorsFile::parse(std::span<const std::byte> bytes, std::string name) {
  const Parts parts = split(bytes, name);
  SafetensorsHeader header = parse_safetensors_header(parts.json, name);
  check_tiling(header.items, parts.data.size(), name);
  SafetensorsFile file;
  file.path_ = std::move(name);
  file.entries_ = make_entries(std::move(header.items), parts.data);
  file.metadata_ = std::move(header.metadata);
  return file;
}

SafetensorsFile SafetensorsFile::open(const std::string& path) {
  MappedFile mapping = MappedFile::open(path);
  SafetensorsFile file = parse(mapping.bytes(), path);
  file.mapping_ = std::move(mapping);
  return file;
}

const TensorEntry* SafetensorsFile::find(std::string_view name) const {
  const auto it = std::ranges::lower_bound(entries_, name, {}, &TensorEntry::name);
  return it != entries_.end() && it->name == name ? &*it : nullptr;
}

const TensorEntry& SafetensorsFile::at(std::string_view name) const {
  const TensorEntry* entry = find(name);
  require(entry != nullptr, "'{}' has no tensor {} (it has {} tensors)", path_, shown(name), entries_.size());
  return *entry;
}

std::map<std::string, std::string> default_safetensors_metadata() { return {{"format", "pt"}}; }

SafetensorsWriter::SafetensorsWriter(const std::string& path, std::span<const TensorEntry> tensors,
                                     const std::map<std::string, std::string>& metadata)
    : file_(path) {
  const SafetensorsHeader header{lay_out(tensors), metadata};
  const std::string text = format_safetensors_header(header);
  for (const SafetensorsItem& item : header.items) {
    const Slot slot{text.size() + item.begin, item.end - item.begin, false};
    if (!slots_.emplace(item.name, slot).second) fail("tensor {} is declared twice", shown(item.name));
  }
  check(!slots_.contains("__metadata__"), "__metadata__ is no name for a tensor");
  file_.write(text);
}

void SafetensorsWriter::write(std::string_view name, std::span<const std::byte> data) {
  const auto it = slots_.find(name);
  if (it == slots_.end()) fail("tensor {} was not declared for '{}'", shown(name), file_.path());
  Slot& slot = it->second;
  if (slot.size != data.size())
    fail("tensor {} has {} bytes, declared {}", shown(name), data.size(), slot.size);
  if (std::exchange(slot.written, true))
    fail("tensor {} is written twice to '{}'", shown(name), file_.path());
  file_.write_at(slot.offset, data);
}

void SafetensorsWriter::finish() {
  for (const auto& [name, slot] : slots_) {
    if (!slot.written) fail("tensor {} of '{}' was never written", shown(name), file_.path());
  }
  file_.commit();
}

void write_safetensors(const std::string& path, std::span<const TensorEntry> entries,
                       const std::map<std::string, std::string>& metadata) {
  SafetensorsWriter writer(path, entries, metadata);
  for (const TensorEntry& entry : entries) writer.write(entry.name, entry.data);
  writer.finish();
}

}  // namespace ridge
