// int4 by the width of its groups: 128 and more, 64, 32.
#include "kernels/decode_product.cuh"

namespace ridge::kernels::cuda {

template bool launch_decode_product<device::Int4Bytes<4, false>>(cudaStream_t, const DecodeParams&);
template bool launch_decode_product<device::Int4Bytes<4, true>>(cudaStream_t, const DecodeParams&);
template bool launch_decode_product<device::Int4Bytes<2, false>>(cudaStream_t, const DecodeParams&);
template bool launch_decode_product<device::Int4Bytes<2, true>>(cudaStream_t, const DecodeParams&);
template bool launch_decode_product<device::Int4Bytes<1, false>>(cudaStream_t, const DecodeParams&);
template bool launch_decode_product<device::Int4Bytes<1, true>>(cudaStream_t, const DecodeParams&);

}  // namespace ridge::kernels::cuda
