// OpenBLAS as the house uses it: one thread a call (our own threads cut the work), with the widest kernels of
// the CPU.
#pragma once

#include <string>

namespace ridge::kernels {

/// Makes OpenBLAS serial and, where it does not know a new CPU, gives it the AVX-512 kernels. Once a process;
/// cheap after.
void prepare_blas();

/// The name of the kernels in use, such as "SkylakeX".
std::string blas_kernels();

}  // namespace ridge::kernels
