// bf16, int8 and fp8.
#include "kernels/decode_product.cuh"

namespace ridge::kernels::cuda {

template bool launch_decode_product<device::DenseCodes>(cudaStream_t, const DecodeParams&);
template bool launch_decode_product<device::Int8Bytes>(cudaStream_t, const DecodeParams&);
template bool launch_decode_product<device::Fp8Halves<true>>(cudaStream_t, const DecodeParams&);
template bool launch_decode_product<device::Fp8Halves<false>>(cudaStream_t, const DecodeParams&);

}  // namespace ridge::kernels::cuda
