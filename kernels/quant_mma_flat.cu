// nf4 and fp4, with f32 scales and with codes for them.
#include "kernels/quant_mma.cuh"

namespace ridge::kernels::cuda {

template void launch_quant_mma<device::FlatCodes<false>>(cudaStream_t, const MmaParams&);
template void launch_quant_mma<device::FlatCodes<true>>(cudaStream_t, const MmaParams&);

}  // namespace ridge::kernels::cuda
