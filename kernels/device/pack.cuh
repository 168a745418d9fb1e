// 16 bytes of elements that stay packed in four registers until they are used: half the registers of floats.
#pragma once

#include <cstdint>
#include <type_traits>

#include "kernels/device/vec.cuh"

namespace ridge::kernels::device {

/// Two floats as bf16, rounded to nearest even by one instruction; `low` at the lower address.
__device__ __forceinline__ unsigned pack_bf16(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const unsigned*>(&pair);
}

template <class T>
struct Pack {
  static constexpr int kSize = kVec<T>;
  uint4 raw = {0, 0, 0, 0};

  __device__ __forceinline__ unsigned word(int w) const {
    return w == 0 ? raw.x : (w == 1 ? raw.y : (w == 2 ? raw.z : raw.w));
  }
  /// Element k, a constant after unrolling, in the accumulation type.
  __device__ __forceinline__ acc_t<T> operator[](int k) const {
    if constexpr (std::is_same_v<T, bf16>) {
      return __uint_as_float(k % 2 == 0 ? word(k / 2) << 16 : word(k / 2) & 0xFFFF0000u);
    } else if constexpr (std::is_same_v<T, double>) {
      return __hiloint2double(static_cast<int>(word(2 * k + 1)), static_cast<int>(word(2 * k)));
    } else {
      return __uint_as_float(word(k));
    }
  }
  /// Rounds to T.
  static __device__ __forceinline__ Pack of(const acc_t<T> (&x)[kSize]) {
    Pack p;
    if constexpr (std::is_same_v<T, bf16>) {
      p.raw = {pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3]), pack_bf16(x[4], x[5]), pack_bf16(x[6], x[7])};
    } else if constexpr (std::is_same_v<T, double>) {
      p.raw = {static_cast<unsigned>(__double2loint(x[0])), static_cast<unsigned>(__double2hiint(x[0])),
               static_cast<unsigned>(__double2loint(x[1])), static_cast<unsigned>(__double2hiint(x[1]))};
    } else {
      p.raw = {__float_as_uint(x[0]), __float_as_uint(x[1]), __float_as_uint(x[2]), __float_as_uint(x[3])};
    }
    return p;
  }
  /// What was computed from the elements before is computed anew after this, not kept in registers.
  __device__ __forceinline__ void forget_unpacked() {
    asm volatile("" : "+r"(raw.x), "+r"(raw.y), "+r"(raw.z), "+r"(raw.w));
  }
};

/// Addresses are multiples of 16 bytes.
template <class T>
__device__ __forceinline__ Pack<T> load_pack(const T* from) {
  return {*reinterpret_cast<const uint4*>(from)};
}
/// For data that is read once: the first to leave the caches.
template <class T>
__device__ __forceinline__ Pack<T> load_pack_once(const T* from) {
  return {__ldcs(reinterpret_cast<const uint4*>(from))};
}
template <class T>
__device__ __forceinline__ void store_pack(T* to, const Pack<T>& value) {
  // A plain assignment may become four stores.
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)),
               "r"(value.raw.x), "r"(value.raw.y), "r"(value.raw.z), "r"(value.raw.w)
               : "memory");
}
template <class T>
__device__ __forceinline__ void store_pack_once(T* to, const Pack<T>& value) {
  __stcs(reinterpret_cast<uint4*>(to), value.raw);
}

}  // namespace ridge::kernels::device
