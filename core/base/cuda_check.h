// CUDA's error codes as exceptions. For .cu files and for sources of a CUDA build.
#pragma once

#include <cuda_runtime.h>

#include <source_location>

namespace ridge {

/// Throws an Error that names the code and the place; a UserError where the device has no memory left.
void check_cuda(cudaError_t code, std::source_location where = std::source_location::current());

}  // namespace ridge
