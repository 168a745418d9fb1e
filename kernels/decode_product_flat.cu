// nf4 and fp4, with f32 scales and with codes for them.
#include "kernels/decode_product.cuh"

namespace ridge::kernels::cuda {

template bool launch_decode_product<device::FlatCodes<false, 1>>(cudaStream_t, const DecodeParams&);
template bool launch_decode_product<device::FlatCodes<true, 1>>(cudaStream_t, const DecodeParams&);

}  // namespace ridge::kernels::cuda
