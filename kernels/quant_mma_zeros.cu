// int4 with zero points by the width of its groups: 128 and more, 64, 32.
#include "kernels/quant_mma.cuh"

namespace ridge::kernels::cuda {

template void launch_quant_mma<device::Int4Codes<4, true, false>>(cudaStream_t, const MmaParams&);
template void launch_quant_mma<device::Int4Codes<4, true, true>>(cudaStream_t, const MmaParams&);
template void launch_quant_mma<device::Int4Codes<2, true, false>>(cudaStream_t, const MmaParams&);
template void launch_quant_mma<device::Int4Codes<2, true, true>>(cudaStream_t, const MmaParams&);
template void launch_quant_mma<device::Int4Codes<1, true, false>>(cudaStream_t, const MmaParams&);
template void launch_quant_mma<device::Int4Codes<1, true, true>>(cudaStream_t, const MmaParams&);

}  // namespace ridge::kernels::cuda
