// int8 and fp8 by row, fp8 by tile.
#include "kernels/quant_wgmma.cuh"

namespace ridge::kernels::cuda {

template void launch_quant_wgmma<device::WideBytes<false, 0>>(cudaStream_t, const WgmmaParams&,
                                                              const std::uint8_t*, std::int64_t);
template void launch_quant_wgmma<device::WideBytes<true, 0>>(cudaStream_t, const WgmmaParams&,
                                                             const std::uint8_t*, std::int64_t);
template void launch_quant_wgmma<device::WideBytes<true, 2>>(cudaStream_t, const WgmmaParams&,
                                                             const std::uint8_t*, std::int64_t);

}  // namespace ridge::kernels::cuda
