// nf4 and fp4, with f32 scales and with codes for them, a block or two at a time.
#include "kernels/quant_mma.cuh"

namespace ridge::kernels::cuda {

template void launch_quant_mma<device::FlatCodes<false, 1>>(cudaStream_t, const MmaParams&);
template void launch_quant_mma<device::FlatCodes<false, 2>>(cudaStream_t, const MmaParams&);
template void launch_quant_mma<device::FlatCodes<true, 1>>(cudaStream_t, const MmaParams&);
template void launch_quant_mma<device::FlatCodes<true, 2>>(cudaStream_t, const MmaParams&);

}  // namespace ridge::kernels::cuda
