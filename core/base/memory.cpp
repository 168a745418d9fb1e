#include "core/base/memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "core/base/cuda.h"
#include "core/base/error.h"

namespace ridge {
namespace {

constexpr std::int64_t kAlignment = 64;
constexpr std::int64_t kHugePage = std::int64_t{2} << 20;

// Multiples of a sixteenth of the next power of two: less than an eighth more than was asked for. Blocks of
// many huge pages are whole huge pages: less than a thirty-second more.
std::int64_t block_size(std::int64_t bytes) {
  const std::int64_t least = std::max<std::int64_t>(bytes, kAlignment);
  const auto power = static_cast<std::int64_t>(std::bit_ceil(static_cast<std::uint64_t>(least)));
  const std::int64_t step = least >= 32 * kHugePage ? kHugePage : std::max(kAlignment, power / 16);
  return (least + step - 1) / step * step;
}

// A region of whole huge pages: `bytes` rounded up, at an address that is a multiple of 2 MiB.
void* map_huge(std::int64_t bytes) {
  const auto size = static_cast<std::size_t>((bytes + kHugePage - 1) / kHugePage * kHugePage);
  void* raw = mmap(nullptr, size + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (raw == MAP_FAILED) return nullptr;
  const auto address = reinterpret_cast<std::uintptr_t>(raw);
  const std::uintptr_t begin = (address + kHugePage - 1) / kHugePage * kHugePage;
  if (begin > address) munmap(raw, begin - address);
  if (begin - address < kHugePage) munmap(reinterpret_cast<void*>(begin + size), address + kHugePage - begin);
  void* data = reinterpret_cast<void*>(begin);
  madvise(data, size, MADV_HUGEPAGE);
  return data;
}

// Memory of the system. Blocks of middle size lie side by side in slabs: alone they would be too small for
// huge pages, and reading weights through 4 KiB pages costs a third of the bandwidth.
class SystemMemory {
 public:
  void* allocate(std::int64_t size) {
    if (size < kSlabLeast) return std::aligned_alloc(kAlignment, static_cast<std::size_t>(size));
    if (size >= kSlabMost) return map_huge(size);
    std::vector<void*>& parked = parked_[size];
    if (parked.empty()) return carve(size);
    void* data = parked.back();
    parked.pop_back();
    return data;
  }

  void free(void* data, std::int64_t size) {
    if (size < kSlabLeast) {
      std::free(data);
    } else if (size >= kSlabMost) {
      munmap(data, static_cast<std::size_t>((size + kHugePage - 1) / kHugePage * kHugePage));
    } else {  // the address stays ours, the pages go
      madvise(data, static_cast<std::size_t>(rounded(size)), MADV_DONTNEED);
      parked_[size].push_back(data);
    }
  }

 private:
  static constexpr std::int64_t kPage = 4096;
  static constexpr std::int64_t kSlabLeast = std::int64_t{64} << 10;
  static constexpr std::int64_t kSlabMost = std::int64_t{16} << 20;
  static constexpr std::int64_t kSlab = std::int64_t{64} << 20;

  static std::int64_t rounded(std::int64_t size) { return (size + kPage - 1) / kPage * kPage; }

  void* carve(std::int64_t size) {
    if (left_ < rounded(size)) {
      slab_ = static_cast<char*>(map_huge(kSlab));
      left_ = slab_ != nullptr ? kSlab : 0;
      if (slab_ == nullptr) return nullptr;
    }
    void* data = slab_;
    slab_ += rounded(size);
    left_ -= rounded(size);
    return data;
  }

  char* slab_ = nullptr;
  std::int64_t left_ = 0;
  std::map<std::int64_t, std::vector<void*>> parked_;
};

// Memory of the GPU. Small blocks share slabs, since the driver hands out no less than 2 MiB.
class DeviceSlabs {
 public:
  void* allocate(std::int64_t size) {
    if (size >= kSlabMost) return cuda::allocate(size);
    std::vector<void*>& parked = parked_[size];
    if (parked.empty()) return carve(size);
    void* data = parked.back();
    parked.pop_back();
    return data;
  }

  void free(void* data, std::int64_t size) {
    if (size >= kSlabMost) {
      cuda::release(data);
    } else {
      parked_[size].push_back(data);
    }
  }

 private:
  static constexpr std::int64_t kSlabMost = std::int64_t{1} << 20;
  static constexpr std::int64_t kSlab = std::int64_t{16} << 20;
  static constexpr std::int64_t kAligned = 256;  // as cudaMalloc: libraries count on it

  void* carve(std::int64_t size) {
    const std::int64_t rounded = (size + kAligned - 1) / kAligned * kAligned;
    if (left_ < rounded) {
      slab_ = static_cast<char*>(cuda::allocate(kSlab));
      left_ = slab_ != nullptr ? kSlab : 0;
      if (slab_ == nullptr) return nullptr;
    }
    void* data = slab_;
    slab_ += rounded;
    left_ -= rounded;
    return data;
  }

  char* slab_ = nullptr;
  std::int64_t left_ = 0;
  std::map<std::int64_t, std::vector<void*>> parked_;
};

// Free blocks by size. The same bookkeeping runs on meta, where blocks have no address.
class Pool {
 public:
  explicit Pool(Device device) : device_(device) {}

  void* take(std::int64_t size, Purpose purpose) {
    const std::lock_guard lock(mutex_);
    void* data = reuse(size);
    if (data == nullptr) data = grow(size);
    count(size, purpose);
    return data;
  }

  void give(void* data, std::int64_t size, Purpose purpose) {
    const std::lock_guard lock(mutex_);
    stats_.live -= size;
    stats_.live_by_purpose[static_cast<std::size_t>(purpose)] -= size;
    free_[size].push_back(data);
  }

  void retag(std::int64_t size, Purpose from, Purpose to) {
    const std::lock_guard lock(mutex_);
    stats_.live_by_purpose[static_cast<std::size_t>(from)] -= size;
    std::int64_t& live = stats_.live_by_purpose[static_cast<std::size_t>(to)];
    live += size;
    std::int64_t& peak = stats_.peak_by_purpose[static_cast<std::size_t>(to)];
    peak = std::max(peak, live);
  }

  MemoryStats stats() {
    const std::lock_guard lock(mutex_);
    return stats_;
  }

  void reset_peaks() {
    const std::lock_guard lock(mutex_);
    trim(0);
    stats_.peak_live = stats_.live;
    stats_.peak_reserved = stats_.reserved;
    stats_.peak_by_purpose = stats_.live_by_purpose;
  }

 private:
  static void* meta_address() {
    static char anchor;
    return &anchor;
  }

  void* reuse(std::int64_t size) {
    const auto it = free_.find(size);
    if (it == free_.end()) return nullptr;
    void* data = it->second.back();
    it->second.pop_back();
    if (it->second.empty()) free_.erase(it);
    return data;
  }

  void* grow(std::int64_t size) {
    // Free blocks of other sizes may stay while they keep the pool within an eighth of its live peak.
    const std::int64_t bound = std::max(stats_.peak_live, stats_.live + size);
    trim(bound + bound / 8 - size);
    void* data = allocate(size);
    if (data == nullptr) {
      trim(0);
      data = allocate(size);
    }
    if (data == nullptr) fail_user("{}", exhausted(size));
    stats_.reserved += size;
    stats_.peak_reserved = std::max(stats_.peak_reserved, stats_.reserved);
    return data;
  }

  void* allocate(std::int64_t size) {
    if (device_ == Device::meta) return meta_address();
    return device_ == Device::cuda ? slabs_.allocate(size) : system_.allocate(size);
  }

  void free(void* data, std::int64_t size) {
    if (device_ == Device::cuda) slabs_.free(data, size);
    if (device_ == Device::cpu) system_.free(data, size);
  }

  std::string exhausted(std::int64_t size) const {
    std::string purposes;
    for (std::size_t p = 0; p < kPurposes; ++p) {
      purposes += fmt::format("{}{} {}", p == 0 ? "" : ", ", name_of(static_cast<Purpose>(p)),
                              mebibytes(stats_.live_by_purpose[p]));
    }
    return fmt::format(
        "out of memory on {}: {} were asked for while {} are in use ({}); to train, lower "
        "train.micro_batch or data.sequence_length, or set train.recompute=blocks; to generate, evaluate or "
        "measure, ask for fewer or shorter sequences at once, or quantize the weights",
        name_of(device_), mebibytes(size), mebibytes(stats_.live), purposes);
  }

  static std::string mebibytes(std::int64_t bytes) {
    return fmt::format("{:.1f} MiB", static_cast<double>(bytes) / (1024.0 * 1024.0));
  }

  void trim(std::int64_t bound) {
    while (stats_.reserved > bound && !free_.empty()) {
      const auto largest = std::prev(free_.end());
      const std::int64_t size = largest->first;
      free(largest->second.back(), size);
      largest->second.pop_back();
      if (largest->second.empty()) free_.erase(largest);
      stats_.reserved -= size;
    }
  }

  void count(std::int64_t size, Purpose purpose) {
    const auto p = static_cast<std::size_t>(purpose);
    stats_.live += size;
    stats_.peak_live = std::max(stats_.peak_live, stats_.live);
    stats_.live_by_purpose[p] += size;
    stats_.peak_by_purpose[p] = std::max(stats_.peak_by_purpose[p], stats_.live_by_purpose[p]);
  }

  Device device_;
  std::mutex mutex_;
  SystemMemory system_;
  DeviceSlabs slabs_;
  std::map<std::int64_t, std::vector<void*>> free_;
  MemoryStats stats_;
};

// Never destroyed: tensors of static lifetime may outlive every other object.
Pool& pool_of(Device device) {
  static Pool& cpu = *new Pool(Device::cpu);
  static Pool& meta = *new Pool(Device::meta);
  static Pool& cuda = *new Pool(Device::cuda);
  if (device == Device::cuda) return cuda;
  return device == Device::meta ? meta : cpu;
}

Purpose& current_purpose() {
  static thread_local Purpose purpose = Purpose::activations;
  return purpose;
}

RecordedMemory*& recorded_memory() {
  static thread_local RecordedMemory* memory = nullptr;
  return memory;
}

}  // namespace

std::string_view name_of(Purpose purpose) {
  constexpr std::array<std::string_view, kPurposes> kNames{"weights", "gradients", "moments", "activations",
                                                           "workspace"};
  return kNames.at(static_cast<std::size_t>(purpose));
}

MemoryStats memory_stats(Device device) { return pool_of(device).stats(); }

void reset_memory_peaks(Device device) { pool_of(device).reset_peaks(); }

std::string memory_report(const MemoryStats& stats) {
  constexpr double kMiB = 1024.0 * 1024.0;
  std::string report;
  for (std::size_t p = 0; p < kPurposes; ++p) {
    report += fmt::format("  {:<12} {:>10.1f} MiB (peak {:.1f})\n", name_of(static_cast<Purpose>(p)),
                          static_cast<double>(stats.live_by_purpose[p]) / kMiB,
                          static_cast<double>(stats.peak_by_purpose[p]) / kMiB);
  }
  return report + fmt::format("  {:<12} {:>10.1f} MiB (peak {:.1f}, with the pool's free blocks {:.1f})\n",
                              "all", static_cast<double>(stats.live) / kMiB,
                              static_cast<double>(stats.peak_live) / kMiB,
                              static_cast<double>(stats.peak_reserved) / kMiB);
}

PurposeScope::PurposeScope(Purpose purpose) : before_(current_purpose()) { current_purpose() = purpose; }

PurposeScope::~PurposeScope() { current_purpose() = before_; }

Storage::Storage(Device device, std::int64_t bytes)
    : bytes_(block_size(bytes)), device_(device), purpose_(current_purpose()) {
  RecordedMemory* recorded = RecordedMemory::current(device);
  data_ = recorded != nullptr ? recorded->reuse(bytes_, purpose_) : nullptr;
  if (data_ == nullptr) data_ = pool_of(device).take(bytes_, purpose_);
}

Storage::Storage(void* data, std::int64_t bytes, std::shared_ptr<const void> owner)
    : data_(data), bytes_(bytes), owner_(std::move(owner)) {}

void Storage::retag(Purpose purpose) {
  if (owner_ == nullptr) pool_of(device_).retag(bytes_, purpose_, purpose);
  purpose_ = purpose;
}

void Storage::drop() {
  check(owner_ == nullptr, "a block of the pool is dropped");
  if (std::exchange(dropped_, true)) return;
  pool_of(device_).give(std::exchange(data_, nullptr), bytes_, purpose_);
}

void Storage::take() {
  if (!dropped_) return;
  data_ = pool_of(device_).take(bytes_, purpose_);
  dropped_ = false;
}

void Storage::exchange_block(Storage& other) {
  check(bytes_ == other.bytes_ && device_ == other.device_ && purpose_ == other.purpose_,
        "blocks of one kind are exchanged");
  check(owner_ == nullptr && other.owner_ == nullptr, "blocks of the pool are exchanged");
  std::swap(data_, other.data_);
  std::swap(dropped_, other.dropped_);
}

Storage::~Storage() {
  if (owner_ != nullptr || dropped_) return;
  if (RecordedMemory* recorded = RecordedMemory::current(device_)) {
    recorded->keep(data_, bytes_, purpose_);
  } else {
    pool_of(device_).give(data_, bytes_, purpose_);
  }
}

RecordedMemory::~RecordedMemory() {
  for (const Block& block : free_) pool_of(device_).give(block.data, block.size, block.purpose);
}

RecordedMemory* RecordedMemory::current(Device device) {
  RecordedMemory* memory = recorded_memory();
  return memory != nullptr && memory->device_ == device ? memory : nullptr;
}

void* RecordedMemory::reuse(std::int64_t size, Purpose purpose) {
  const auto fits = [&](const Block& b) { return b.size == size && b.purpose == purpose; };
  const auto block = std::find_if(free_.rbegin(), free_.rend(), fits);
  if (block == free_.rend()) return nullptr;
  void* data = block->data;
  free_.erase(std::next(block).base());
  return data;
}

void RecordedMemory::keep(void* data, std::int64_t size, Purpose purpose) {
  free_.push_back({data, size, purpose});
}

RecordedMemory::Scope::Scope(RecordedMemory& memory) : before_(recorded_memory()) {
  recorded_memory() = &memory;
}

RecordedMemory::Scope::~Scope() { recorded_memory() = before_; }

}  // namespace ridge
