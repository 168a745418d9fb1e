#include "core/base/device.h"

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
  if (name == "auto" || name == "cpu") return Device::cpu;
  if (name == "meta") return Device::meta;
  if (name == "cuda") fail_user("--device cuda: this version has CPU kernels only; use --device cpu");
  fail_user("--device '{}' is unknown: use auto, cpu or cuda", name);
}

}  // namespace ridge
