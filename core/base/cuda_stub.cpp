// Stands for cuda.cu in a build without CUDA.
#include "core/base/cuda.h"

namespace ridge {

bool built_with_cuda() { return false; }

std::vector<std::string> cuda_devices() { return {}; }

}  // namespace ridge
