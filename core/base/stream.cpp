#include "core/base/stream.h"

namespace ridge {

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

}  // namespace ridge
