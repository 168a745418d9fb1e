// The device that tests of kernels and ops run on: RIDGE_TEST_DEVICE=cuda chooses the GPU, else it is the
// CPU.
#pragma once

#include <cstdlib>
#include <string_view>
#include <vector>

#include "core/base/cuda.h"
#include "core/base/stream.h"

namespace ridge::test {

inline bool on_gpu() {
  static const bool kGpu = [] {
    const char* name = std::getenv("RIDGE_TEST_DEVICE");
    return name != nullptr && std::string_view(name) == "cuda";
  }();
  return kGpu;
}

inline Device test_device() { return on_gpu() ? Device::cuda : Device::cpu; }
inline Stream& test_stream() { return current_stream(test_device()); }

/// Until the device has done what was queued: before the host reads.
inline void wait_for_device() {
  if (on_gpu()) cuda::synchronize(test_stream());
}

/// Host memory that the device under test can address: page-locked for a GPU.
template <class T>
struct TestAllocator {
  using value_type = T;
  TestAllocator() = default;
  template <class U>
  TestAllocator(const TestAllocator<U>&) {}
  T* allocate(std::size_t count) {
    if (on_gpu()) return static_cast<T*>(cuda::allocate_pinned(static_cast<std::int64_t>(count * sizeof(T))));
    return std::allocator<T>().allocate(count);
  }
  void deallocate(T* data, std::size_t count) {
    if (!on_gpu()) return std::allocator<T>().deallocate(data, count);
    wait_for_device();
    cuda::release_pinned(data);
  }
  friend bool operator==(const TestAllocator&, const TestAllocator&) { return true; }
};

template <class T>
using Memory = std::vector<T, TestAllocator<T>>;

}  // namespace ridge::test
