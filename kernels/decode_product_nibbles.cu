// int4 by the width of its groups: 128 and more, 64, 32.
#include "kernels/decode_product.cuh"

namespace ridge::kernels::cuda {

template bool launch_decode_product<device::Int4Codes<4, false, false>>(cudaStream_t, const DecodeParams&);
template bool launch_decode_product<device::Int4Codes<4, false, true>>(cudaStream_t, const DecodeParams&);
template bool launch_decode_product<device::Int4Codes<2, false, false>>(cudaStream_t, const DecodeParams&);
template bool launch_decode_product<device::Int4Codes<2, false, true>>(cudaStream_t, const DecodeParams&);
template bool launch_decode_product<device::Int4Codes<1, false, false>>(cudaStream_t, const DecodeParams&);
template bool launch_decode_product<device::Int4Codes<1, false, true>>(cudaStream_t, const DecodeParams&);

}  // namespace ridge::kernels::cuda
