#include "core/base/cuda.h"

#include <cuda_runtime.h>

namespace ridge {

bool built_with_cuda() { return true; }

std::vector<std::string> cuda_devices() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) return {};
  std::vector<std::string> names;
  for (int device = 0; device < count; ++device) {
    cudaDeviceProp properties{};
    if (cudaGetDeviceProperties(&properties, device) != cudaSuccess) continue;
    const int capability = properties.major * 10 + properties.minor;
    names.push_back(std::string(properties.name) + " (sm_" + std::to_string(capability) + ")");
  }
  return names;
}

}  // namespace ridge
