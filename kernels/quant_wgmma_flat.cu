// nf4 and fp4, with f32 scales and with codes for them.
#include "kernels/quant_wgmma.cuh"

namespace ridge::kernels::cuda {

template void launch_quant_wgmma<device::WideFlat<false>>(cudaStream_t, const WgmmaParams&,
                                                          const std::uint8_t*, std::int64_t);
template void launch_quant_wgmma<device::WideFlat<true>>(cudaStream_t, const WgmmaParams&,
                                                         const std::uint8_t*, std::int64_t);

}  // namespace ridge::kernels::cuda
