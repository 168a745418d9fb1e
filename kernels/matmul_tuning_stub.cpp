// Stands for device/gemm_cublas.cpp in a build without CUDA: there is nothing to tune.
#include "kernels/matmul_tuning.h"

namespace ridge::kernels {

void set_matmul_tuning(bool) {}
std::string matmul_choices() { return {}; }
std::int64_t set_matmul_choices(const std::string&, const std::string&) { return 0; }

}  // namespace ridge::kernels
