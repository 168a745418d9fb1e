// Sums and maxima over warps and blocks, always in the same order.
#pragma once

#include <cuda_runtime.h>

namespace ridge::kernels::device {

struct Sum {
  template <class A>
  __device__ __forceinline__ A operator()(A a, A b) const {
    return a + b;
  }
};
struct Max {
  template <class A>
  __device__ __forceinline__ A operator()(A a, A b) const {
    return a > b ? a : b;
  }
};

/// Every lane gets the result.
template <class Op, class A>
__device__ __forceinline__ A warp_all(A value, Op op = {}) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) value = op(value, __shfl_xor_sync(0xFFFFFFFFu, value, step));
  return value;
}

/// Every thread gets the result. `shared` holds 33 values and may be used again after the call. All threads
/// of the block (a multiple of 32) take part.
template <class Op, class A>
__device__ __forceinline__ A block_all(A value, A* shared, A identity, Op op = {}) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int warps = (static_cast<int>(blockDim.x) + 31) / 32;
  value = warp_all<Op>(value, op);
  if (lane == 0) shared[warp] = value;
  __syncthreads();
  if (warp == 0) {
    A total = lane < warps ? shared[lane] : identity;
    total = warp_all<Op>(total, op);
    if (lane == 0) shared[32] = total;
  }
  __syncthreads();
  const A result = shared[32];
  __syncthreads();
  return result;
}

}  // namespace ridge::kernels::device
