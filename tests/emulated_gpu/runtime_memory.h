// Memory of the emulated device: the host's, between pages that nobody may touch.
#pragma once

#include <cstddef>

#include "tests/emulated_gpu/runtime.h"

namespace ridge::emulated {

struct Allocation {
  std::byte* data = nullptr;
  std::size_t bytes = 0;  // 0: none
  cudaMemoryType type = cudaMemoryTypeUnregistered;
};

/// The allocation that an address is in, or whose end it is; none: host memory that a GPU does not see.
Allocation allocation_at(const void* address);
/// Changes whenever memory is freed: what was kept of allocation_at() is then void.
std::size_t memory_generation();
/// Throws std::runtime_error, naming `what`, unless all of it is in one allocation.
void check_visible(const void* address, std::size_t bytes, const std::string& what);

}  // namespace ridge::emulated
