#include "launch/host_buffer.h"

#include <utility>

#include "core/base/cuda.h"

namespace ridge {

HostBuffer::HostBuffer(std::int64_t bytes, Device device) : bytes_(bytes), device_(device) {
  if (device == Device::cuda) {
    data_ = static_cast<std::byte*>(cuda::allocate_pinned(bytes));
  } else {
    data_ = new std::byte[static_cast<std::size_t>(bytes)];
  }
}

HostBuffer::HostBuffer(HostBuffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)),
      device_(other.device_) {}

HostBuffer& HostBuffer::operator=(HostBuffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  std::swap(device_, other.device_);
  return *this;
}

HostBuffer::~HostBuffer() {
  if (device_ == Device::cuda) {
    if (data_ != nullptr) cuda::release_pinned(data_);
  } else {
    delete[] data_;
  }
}

void* copy_stream() {
  static void* stream = cuda::make_stream("checkpoint");
  return stream;
}

}  // namespace ridge
