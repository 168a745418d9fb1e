// silu(x) = x sigmoid(x) (Elfwing et al., 2017) in the accumulation type; for bf16 e^x in hardware, exact
// to about 1e-6 for the arguments that matter: not enough for float.
#pragma once

#include "core/base/dtype.h"

namespace ridge::kernels::device {

template <class T>
__device__ __forceinline__ acc_t<T> sigmoid(acc_t<T> x) {
  if constexpr (std::is_same_v<T, bf16>) {
    return __fdividef(1.0f, 1.0f + __expf(-x));
  } else if constexpr (std::is_same_v<T, float>) {
    return 1.0f / (1.0f + expf(-x));
  } else {
    return 1.0 / (1.0 + exp(-x));
  }
}

template <class T>
__device__ __forceinline__ acc_t<T> silu_of(acc_t<T> x) {
  return x * sigmoid<T>(x);
}

}  // namespace ridge::kernels::device
