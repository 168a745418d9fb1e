// int8 and fp8.
#include "kernels/quant_mma.cuh"

namespace ridge::kernels::cuda {

template void launch_quant_mma<device::ByteCodes<false>>(cudaStream_t, const MmaParams&);
template void launch_quant_mma<device::ByteCodes<true>>(cudaStream_t, const MmaParams&);

}  // namespace ridge::kernels::cuda
