#include "tests/emulated_gpu/runtime_memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <map>
#include <stdexcept>

namespace ridge::emulated {
namespace {

constexpr std::size_t kPage = 4096, kAligned = 256;
constexpr std::size_t kTotal = std::size_t{8} << 30;     // bytes that the device claims to have
constexpr std::size_t kPattern = std::size_t{16} << 20;  // bytes of the poisoned file
constexpr int kPoison = 0xFF, kMargin = 0xA5;            // 0xFF...: NaN in every float format

std::size_t rounded(std::size_t bytes, std::size_t to) { return (bytes + to - 1) / to * to; }

struct Block {
  std::byte* map = nullptr;  // guard, pages, guard; null: registered, not ours
  std::size_t map_bytes = 0;
  std::size_t bytes = 0;
  cudaMemoryType type = cudaMemoryTypeDevice;
};

struct Memory {
  std::mutex mutex;
  std::map<std::uintptr_t, Block> blocks;  // by address
  std::size_t used = 0;                    // bytes of device memory
  std::atomic<std::size_t> generation{0};
};

Memory& memory() {
  static Memory& all = *new Memory;
  return all;
}

int poisoned_file() {
  static const int kFile = [] {
    const int file = ::memfd_create("poison", 0);
    if (file < 0 || ::ftruncate(file, kPattern) != 0) return -1;
    void* data = ::mmap(nullptr, kPattern, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (data == MAP_FAILED) return -1;
    std::memset(data, kPoison, kPattern);
    ::munmap(data, kPattern);
    return file;
  }();
  return kFile;
}

// Large memory is poisoned without touching it: pages of the file, copied when they are written.
bool open_pages(std::byte* from, std::size_t bytes) {
  if (bytes < kPattern) {
    if (::mprotect(from, bytes, PROT_READ | PROT_WRITE) != 0) return false;
    std::memset(from, kPoison, bytes);
    return true;
  }
  if (poisoned_file() < 0) return false;
  for (std::size_t at = 0; at < bytes; at += kPattern) {
    const void* got = ::mmap(from + at, std::min(kPattern, bytes - at), PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE, poisoned_file(), 0);
    if (got == MAP_FAILED) return false;
  }
  return true;
}

struct Margins {
  std::byte *before, *data, *after, *end;
};

// The end lies at the guard, but for what alignment takes.
Margins margins_of(const Block& block) {
  std::byte* const end = block.map + block.map_bytes - kPage;
  std::byte* const data = end - rounded(std::max<std::size_t>(block.bytes, 1), kAligned);
  return {block.map + kPage, data, data + block.bytes, end};
}

cudaError_t allocate(void** to, std::size_t bytes, cudaMemoryType type) {
  if (to == nullptr) return told(cudaErrorInvalidValue);
  *to = nullptr;
  if (const cudaError_t state = device_state(); state != cudaSuccess) return told(state);
  if (bytes == 0) return cudaSuccess;
  Memory& all = memory();
  const std::lock_guard lock(all.mutex);
  const bool device = type == cudaMemoryTypeDevice;
  if (bytes > kTotal || (device && bytes > kTotal - all.used)) return told(cudaErrorMemoryAllocation);
  Block block;
  block.bytes = bytes;
  block.type = type;
  block.map_bytes = rounded(rounded(bytes, kAligned), kPage) + 2 * kPage;
  void* map = ::mmap(nullptr, block.map_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (map == MAP_FAILED) return told(cudaErrorMemoryAllocation);
  block.map = static_cast<std::byte*>(map);
  if (!open_pages(block.map + kPage, block.map_bytes - 2 * kPage)) {
    ::munmap(map, block.map_bytes);
    return told(cudaErrorMemoryAllocation);
  }
  const Margins margins = margins_of(block);
  std::fill(margins.before, margins.data, std::byte{kMargin});
  std::fill(margins.after, margins.end, std::byte{kMargin});
  all.blocks[reinterpret_cast<std::uintptr_t>(margins.data)] = block;
  if (device) all.used += bytes;
  *to = margins.data;
  return cudaSuccess;
}

bool margins_hold(const Block& block) {
  const Margins margins = margins_of(block);
  const auto untouched = [](std::byte b) { return b == std::byte{kMargin}; };
  return std::all_of(margins.before, margins.data, untouched) &&
         std::all_of(margins.after, margins.end, untouched);
}

cudaError_t release(void* data, bool device) {
  if (data == nullptr) return cudaSuccess;
  Memory& all = memory();
  const std::lock_guard device_lock(device_mutex());  // not while a kernel runs
  const std::lock_guard lock(all.mutex);
  const auto found = all.blocks.find(reinterpret_cast<std::uintptr_t>(data));
  if (found == all.blocks.end() || found->second.map == nullptr) return told(cudaErrorInvalidValue);
  const Block block = found->second;
  if (device != (block.type != cudaMemoryTypeHost)) return told(cudaErrorInvalidValue);
  all.blocks.erase(found);
  ++all.generation;
  if (block.type == cudaMemoryTypeDevice) all.used -= block.bytes;
  const bool intact = margins_hold(block);
  ::munmap(block.map, block.map_bytes);
  if (!intact)
    return told(break_device("memory before or after an allocation of " + std::to_string(block.bytes) +
                             " bytes was written"));
  return told(device_state());
}

// Whether a copy or fill stays in the allocation it begins in; what is in none is the host's affair.
bool inside(const void* address, std::size_t bytes) {
  const Allocation found = allocation_at(address);
  return found.bytes == 0 ||
         static_cast<std::size_t>(found.data + found.bytes - static_cast<const std::byte*>(address)) >= bytes;
}

}  // namespace

Allocation allocation_at(const void* address) {
  Memory& all = memory();
  const std::lock_guard lock(all.mutex);
  const auto at = reinterpret_cast<std::uintptr_t>(address);
  auto next = all.blocks.upper_bound(at);
  if (next == all.blocks.begin()) return {};
  const auto& [begin, block] = *std::prev(next);
  if (at > begin + block.bytes) return {};
  return {reinterpret_cast<std::byte*>(begin), block.bytes, block.type};
}

std::size_t memory_generation() { return memory().generation; }

void check_visible(const void* address, std::size_t bytes, const std::string& what) {
  if (bytes == 0) return;
  if (allocation_at(address).bytes == 0)
    throw std::runtime_error(what + " is not in the device's memory, nor in page-locked memory");
  if (!inside(address, bytes))
    throw std::runtime_error(what + " goes beyond its allocation: " + std::to_string(bytes) + " bytes");
}

}  // namespace ridge::emulated

using namespace ridge::emulated;

extern "C" {

cudaError_t cudaMalloc(void** data, size_t bytes) { return allocate(data, bytes, cudaMemoryTypeDevice); }
cudaError_t cudaMallocAsync(void** data, size_t bytes, cudaStream_t) { return cudaMalloc(data, bytes); }
cudaError_t cudaMallocManaged(void** data, size_t bytes, unsigned) {
  return allocate(data, bytes, cudaMemoryTypeManaged);
}
cudaError_t cudaMallocHost(void** data, size_t bytes) { return allocate(data, bytes, cudaMemoryTypeHost); }
cudaError_t cudaHostAlloc(void** data, size_t bytes, unsigned) { return cudaMallocHost(data, bytes); }
cudaError_t cudaFree(void* data) { return release(data, true); }
cudaError_t cudaFreeAsync(void* data, cudaStream_t) { return cudaFree(data); }
cudaError_t cudaFreeHost(void* data) { return release(data, false); }

cudaError_t cudaHostRegister(void* data, size_t bytes, unsigned) {
  Memory& all = memory();
  const std::lock_guard lock(all.mutex);
  Block block;
  block.bytes = bytes;
  block.type = cudaMemoryTypeHost;
  const bool fresh = all.blocks.emplace(reinterpret_cast<std::uintptr_t>(data), block).second;
  return fresh ? cudaSuccess : told(cudaErrorHostMemoryAlreadyRegistered);
}

cudaError_t cudaHostUnregister(void* data) {
  Memory& all = memory();
  const std::lock_guard lock(all.mutex);
  const auto found = all.blocks.find(reinterpret_cast<std::uintptr_t>(data));
  if (found == all.blocks.end() || found->second.map != nullptr)
    return told(cudaErrorHostMemoryNotRegistered);
  all.blocks.erase(found);
  ++all.generation;
  return cudaSuccess;
}

cudaError_t cudaHostGetDevicePointer(void** device, void* host, unsigned) {
  *device = host;
  return allocation_at(host).bytes == 0 ? told(cudaErrorInvalidValue) : cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  Memory& all = memory();
  const std::lock_guard lock(all.mutex);
  *free = kTotal - all.used;
  *total = kTotal;
  return told(device_state());
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* address) {
  const Allocation found = allocation_at(address);
  *attributes = {};
  const bool inside_it = found.bytes != 0 && address != found.data + found.bytes;
  void* data = const_cast<void*>(address);
  attributes->type = inside_it ? found.type : cudaMemoryTypeUnregistered;
  attributes->device = inside_it ? 0 : cudaInvalidDeviceId;
  attributes->devicePointer = inside_it ? data : nullptr;
  attributes->hostPointer = attributes->type == cudaMemoryTypeDevice ? nullptr : data;
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  if (bytes == 0) return cudaSuccess;
  if (!inside(to, bytes) || !inside(from, bytes)) return told(cudaErrorInvalidValue);
  return enqueue(stream, [=] { std::memmove(to, from, bytes); });
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
  return cudaMemcpyAsync(to, from, bytes, kind, nullptr);
}

cudaError_t cudaMemsetAsync(void* data, int value, size_t bytes, cudaStream_t stream) {
  if (bytes == 0) return cudaSuccess;
  if (allocation_at(data).bytes == 0 || !inside(data, bytes)) return told(cudaErrorInvalidValue);
  return enqueue(stream, [=] { std::memset(data, value, bytes); });
}
cudaError_t cudaMemset(void* data, int value, size_t bytes) {
  return cudaMemsetAsync(data, value, bytes, nullptr);
}

// Another process cannot map this memory: the program has ways to do without.
cudaError_t cudaIpcGetMemHandle(cudaIpcMemHandle_t*, void*) { return told(cudaErrorNotSupported); }
cudaError_t cudaIpcOpenMemHandle(void**, cudaIpcMemHandle_t, unsigned) { return told(cudaErrorNotSupported); }
cudaError_t cudaIpcCloseMemHandle(void*) { return told(cudaErrorNotSupported); }

}  // extern "C"
