// int4 with zero points.
#include "kernels/decode_product.cuh"

namespace ridge::kernels::cuda {

template bool launch_decode_product<device::Int4Codes<4, true, false>>(cudaStream_t, const DecodeParams&);
template bool launch_decode_product<device::Int4Codes<4, true, true>>(cudaStream_t, const DecodeParams&);
template bool launch_decode_product<device::Int4Codes<2, true, false>>(cudaStream_t, const DecodeParams&);
template bool launch_decode_product<device::Int4Codes<2, true, true>>(cudaStream_t, const DecodeParams&);
template bool launch_decode_product<device::Int4Codes<1, true, false>>(cudaStream_t, const DecodeParams&);
template bool launch_decode_product<device::Int4Codes<1, true, true>>(cudaStream_t, const DecodeParams&);

}  // namespace ridge::kernels::cuda
