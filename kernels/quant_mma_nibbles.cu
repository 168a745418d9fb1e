// int4 by the width of its groups: 128 and more, 64, 32.
#include "kernels/quant_mma.cuh"

namespace ridge::kernels::cuda {

template void launch_quant_mma<device::Int4Codes<4, false, false>>(cudaStream_t, const MmaParams&);
template void launch_quant_mma<device::Int4Codes<4, false, true>>(cudaStream_t, const MmaParams&);
template void launch_quant_mma<device::Int4Codes<2, false, false>>(cudaStream_t, const MmaParams&);
template void launch_quant_mma<device::Int4Codes<2, false, true>>(cudaStream_t, const MmaParams&);
template void launch_quant_mma<device::Int4Codes<1, false, false>>(cudaStream_t, const MmaParams&);
template void launch_quant_mma<device::Int4Codes<1, false, true>>(cudaStream_t, const MmaParams&);

}  // namespace ridge::kernels::cuda
