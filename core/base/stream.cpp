#include "core/base/stream.h"

#include "core/base/cuda.h"
#include "core/base/error.h"

namespace ridge {

void* Stream::native() const {
  check(device_ == Device::cuda, "the native stream of a stream on cuda");
  return native_ != nullptr ? native_ : cuda::compute_stream();
}

Stream& current_stream(Device device) {
  static thread_local Stream cpu(Device::cpu, "cpu");
  static thread_local Stream cuda(Device::cuda, "cuda");
  static thread_local Stream meta(Device::meta, "meta");
  switch (device) {
    case Device::cuda:
      return cuda;
    case Device::meta:
      return meta;
    default:
      return cpu;
  }
}

Device planned_device(Device device) {
  return device == Device::meta ? current_stream(device).meta_device : device;
}

}  // namespace ridge
