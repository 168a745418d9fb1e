// Elements on the device: conversions by hardware instructions, and vectors of 16 bytes.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "core/base/dtype.h"

namespace ridge::kernels::device {

/// An element in its accumulation type.
__device__ __forceinline__ float load(float x) { return x; }
__device__ __forceinline__ double load(double x) { return x; }
__device__ __forceinline__ float load(bf16 x) { return __uint_as_float(static_cast<unsigned>(x.bits) << 16); }
__device__ __forceinline__ float load(f16 x) { return __half2float(__ushort_as_half(x.bits)); }

/// Rounds to nearest even.
template <class T>
__device__ __forceinline__ T round_to(acc_t<T> x) {
  if constexpr (std::is_same_v<T, bf16>) {
    bf16 y;
    y.bits = __bfloat16_as_ushort(__float2bfloat16_rn(x));
    return y;
  } else if constexpr (std::is_same_v<T, f16>) {
    f16 y;
    y.bits = __half_as_ushort(__float2half_rn(x));
    return y;
  } else {
    return x;
  }
}

/// N elements that move as one: 16 bytes wherever the address allows.
template <class T, int N>
struct alignas(sizeof(T) * N) Vec {
  T at[N];
};

/// Elements of 16 bytes.
template <class T>
inline constexpr int kVec = 16 / static_cast<int>(sizeof(T));

template <class T, int N>
__device__ __forceinline__ Vec<T, N> load_vec(const T* from) {
  return *reinterpret_cast<const Vec<T, N>*>(from);
}
/// For data that is read once: does not stay in L1.
template <class T, int N>
__device__ __forceinline__ Vec<T, N> load_stream(const T* from) {
  static_assert(sizeof(Vec<T, N>) == 16);
  const int4 raw = __ldcs(reinterpret_cast<const int4*>(from));
  return *reinterpret_cast<const Vec<T, N>*>(&raw);
}
template <class T, int N>
__device__ __forceinline__ void store_vec(T* to, const Vec<T, N>& value) {
  *reinterpret_cast<Vec<T, N>*>(to) = value;
}

/// Whether rows that begin at `data`, `stride` elements apart, can be moved in vectors of N.
template <class T>
bool aligned_rows(const T* data, std::int64_t stride, int n = kVec<T>) {
  return reinterpret_cast<std::uintptr_t>(data) % (sizeof(T) * static_cast<std::size_t>(n)) == 0 &&
         stride % n == 0;
}

}  // namespace ridge::kernels::device
