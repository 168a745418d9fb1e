// Host memory that copies between a GPU and files pass through.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/base/device.h"

namespace ridge {

/// Uninitialised; page-locked where it serves a GPU.
class HostBuffer {
 public:
  HostBuffer() = default;
  HostBuffer(std::int64_t bytes, Device device);
  HostBuffer(HostBuffer&& other) noexcept;
  HostBuffer& operator=(HostBuffer&& other) noexcept;
  ~HostBuffer();

  std::byte* data() const { return data_; }
  std::int64_t bytes() const { return bytes_; }

 private:
  std::byte* data_ = nullptr;
  std::int64_t bytes_ = 0;
  Device device_ = Device::cpu;
};

/// The GPU's stream for copies beside the work: a cudaStream_t, one a process.
void* copy_stream();

}  // namespace ridge
