// nf4 and fp4, with f32 scales and with codes for them.
#include "kernels/decode_product.cuh"

namespace ridge::kernels::cuda {

template bool launch_decode_product<device::FlatLines<false>>(cudaStream_t, const DecodeParams&);
template bool launch_decode_product<device::FlatLines<true>>(cudaStream_t, const DecodeParams&);

}  // namespace ridge::kernels::cuda
