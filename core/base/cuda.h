// What the CUDA runtime says about this machine. A build without CUDA links a stub.
#pragma once

#include <string>
#include <vector>

namespace ridge {

/// Whether this build has CUDA code.
bool built_with_cuda();

/// Names of the GPUs, such as "NVIDIA H200 (sm_90)"; empty where there is no GPU, no driver, or no CUDA in
/// this build.
std::vector<std::string> cuda_devices();

}  // namespace ridge
