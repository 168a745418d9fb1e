// int4 with zero points by the width of its groups: 128 and more, 64, 32.
#include "kernels/quant_wgmma.cuh"

namespace ridge::kernels::cuda {

template void launch_quant_wgmma<device::WideInt4<4, true, false>>(cudaStream_t, const WgmmaParams&,
                                                                   const std::uint8_t*, std::int64_t);
template void launch_quant_wgmma<device::WideInt4<4, true, true>>(cudaStream_t, const WgmmaParams&,
                                                                  const std::uint8_t*, std::int64_t);
template void launch_quant_wgmma<device::WideInt4<2, true, false>>(cudaStream_t, const WgmmaParams&,
                                                                   const std::uint8_t*, std::int64_t);
template void launch_quant_wgmma<device::WideInt4<2, true, true>>(cudaStream_t, const WgmmaParams&,
                                                                  const std::uint8_t*, std::int64_t);
template void launch_quant_wgmma<device::WideInt4<1, true, false>>(cudaStream_t, const WgmmaParams&,
                                                                   const std::uint8_t*, std::int64_t);
template void launch_quant_wgmma<device::WideInt4<1, true, true>>(cudaStream_t, const WgmmaParams&,
                                                                  const std::uint8_t*, std::int64_t);

}  // namespace ridge::kernels::cuda
