// Memory by purpose: pooled blocks, counted the same way on a real device and on meta.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/base/device.h"

namespace ridge {

/// What memory is for: the rows of the allocation report.
enum class Purpose : std::uint8_t { weights, gradients, moments, activations, workspace };
inline constexpr std::size_t kPurposes = 5;
std::string_view name_of(Purpose purpose);

/// Bytes; `peak_live` is the most that was in use at once, `peak_reserved` counts the pool's free blocks too.
struct MemoryStats {
  std::int64_t live = 0;
  std::int64_t peak_live = 0;
  std::int64_t reserved = 0;
  std::int64_t peak_reserved = 0;
  std::array<std::int64_t, kPurposes> live_by_purpose{};
  std::array<std::int64_t, kPurposes> peak_by_purpose{};
};

MemoryStats memory_stats(Device device);
/// Starts peaks anew from what is live now, and returns the pool's free blocks.
void reset_memory_peaks(Device device);
/// One line a purpose.
std::string memory_report(const MemoryStats& stats);

/// Allocations of this thread count under `purpose` for a scope.
class PurposeScope {
 public:
  explicit PurposeScope(Purpose purpose);
  ~PurposeScope();
  PurposeScope(const PurposeScope&) = delete;
  PurposeScope& operator=(const PurposeScope&) = delete;

 private:
  Purpose before_;
};

/// A block of memory, given back when the last owner goes. 64-byte aligned; null on meta.
class Storage {
 public:
  /// Takes `bytes` from the pool of `device`.
  Storage(Device device, std::int64_t bytes);
  /// Wraps memory that `owner` keeps alive, such as a mapped file.
  Storage(void* data, std::int64_t bytes, std::shared_ptr<const void> owner);
  ~Storage();
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;

  void* data() const { return data_; }
  std::int64_t bytes() const { return bytes_; }
  Device device() const { return device_; }
  /// Whether this wraps memory that must not be written.
  bool borrowed() const { return owner_ != nullptr; }
  /// Counts the block under another purpose from now on.
  void retag(Purpose purpose);
  /// Gives the block back to the pool while its tensors stay; they may not be used until take() gets one
  /// again, which holds anything. Both do nothing where it is so already.
  void drop();
  void take();
  bool dropped() const { return dropped_; }
  /// Exchanges blocks with another storage of the same size, purpose and device; one may be dropped.
  void exchange_block(Storage& other);

 private:
  void* data_ = nullptr;
  std::int64_t bytes_ = 0;
  Device device_ = Device::cpu;
  Purpose purpose_ = Purpose::activations;
  bool dropped_ = false;
  std::shared_ptr<const void> owner_;
};

/// Memory of work that is recorded to run again. In its scope this thread's blocks of `device` come from here
/// and go back here, so that nobody else has them while it lives.
class RecordedMemory {
 public:
  explicit RecordedMemory(Device device) : device_(device) {}
  ~RecordedMemory();
  RecordedMemory(const RecordedMemory&) = delete;
  RecordedMemory& operator=(const RecordedMemory&) = delete;

  class Scope {
   public:
    explicit Scope(RecordedMemory& memory);
    ~Scope();
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    RecordedMemory* before_;
  };

  /// Of the innermost scope of this thread for a device; null outside.
  static RecordedMemory* current(Device device);
  /// A block that came back, or null.
  void* reuse(std::int64_t size, Purpose purpose);
  void keep(void* data, std::int64_t size, Purpose purpose);

 private:
  struct Block {
    void* data;
    std::int64_t size;
    Purpose purpose;
  };
  Device device_;
  std::vector<Block> free_;
};

}  // namespace ridge
