// int4 by the width of its groups: 128 and more, 64, 32.
#include "kernels/quant_wgmma.cuh"

namespace ridge::kernels::cuda {

template void launch_quant_wgmma<device::WideInt4<4, false, false>>(cudaStream_t, const WgmmaParams&,
                                                                    const std::uint8_t*, std::int64_t);
template void launch_quant_wgmma<device::WideInt4<4, false, true>>(cudaStream_t, const WgmmaParams&,
                                                                   const std::uint8_t*, std::int64_t);
template void launch_quant_wgmma<device::WideInt4<2, false, false>>(cudaStream_t, const WgmmaParams&,
                                                                    const std::uint8_t*, std::int64_t);
template void launch_quant_wgmma<device::WideInt4<2, false, true>>(cudaStream_t, const WgmmaParams&,
                                                                   const std::uint8_t*, std::int64_t);
template void launch_quant_wgmma<device::WideInt4<1, false, false>>(cudaStream_t, const WgmmaParams&,
                                                                    const std::uint8_t*, std::int64_t);
template void launch_quant_wgmma<device::WideInt4<1, false, true>>(cudaStream_t, const WgmmaParams&,
                                                                   const std::uint8_t*, std::int64_t);

}  // namespace ridge::kernels::cuda
