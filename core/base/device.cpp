#include "core/base/device.h"

#include "core/base/cuda.h"
#include "core/base/error.h"

namespace ridge {

std::string_view name_of(Device device) {
  switch (device) {
    case Device::cpu:
      return "cpu";
    case Device::cuda:
      return "cuda";
    case Device::meta:
      return "meta";
  }
  return "?";
}

Device parse_device(std::string_view name) {
  if (name == "cpu") return Device::cpu;
  if (name == "auto") return cuda_devices().empty() ? Device::cpu : Device::cuda;
  if (name != "cuda") fail_user("--device '{}' is unknown: use auto, cpu or cuda", name);
  if (!built_with_cuda())
    fail_user("--device cuda: this build has no CUDA: use --device cpu, or build with -DRIDGE_CUDA=ON");
  return Device::cuda;
}

}  // namespace ridge
