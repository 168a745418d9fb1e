// What the optimizers' kernels share on the device: four elements at a time, a parameter as f32 or as bf16
// with the rest of its f32 master, the factor on the gradient.
#pragma once

#include <cstdint>
#include <type_traits>

#include "kernels/device/launch.cuh"
#include "kernels/device/pack.cuh"
#include "kernels/optimizer_step.h"

namespace ridge::kernels::device {

inline constexpr int kQuad = 4;   // elements that move as one: 16 bytes of f32, 8 of bf16
inline constexpr int kQuads = 2;  // of one thread, a block's width apart

/// Four elements as they lie in memory. kFull: all exist and can move as one; else `count` exist, from 0
/// to 4.
template <class T>
struct Quad {
  using Raw = std::conditional_t<sizeof(T) == 4, uint4, uint2>;
  using Bits = std::conditional_t<sizeof(T) == 4, unsigned, unsigned short>;
  Raw raw = {};

  __device__ __forceinline__ unsigned bits(int k) const {
    if constexpr (sizeof(T) == 4) {
      return k == 0 ? raw.x : (k == 1 ? raw.y : (k == 2 ? raw.z : raw.w));
    } else {
      return ((k < 2 ? raw.x : raw.y) >> (16 * (k % 2))) & 0xFFFFu;
    }
  }
  __device__ __forceinline__ float operator[](int k) const {
    if constexpr (sizeof(T) == 4) return __uint_as_float(bits(k));
    return __uint_as_float(k % 2 == 0 ? (k < 2 ? raw.x : raw.y) << 16
                                      : (k < 2 ? raw.x : raw.y) & 0xFFFF0000u);
  }
  static __device__ __forceinline__ Quad of_bits(const unsigned (&x)[kQuad]) {
    if constexpr (sizeof(T) == 4) {
      return {{x[0], x[1], x[2], x[3]}};
    } else {  // the low halves
      return {{__byte_perm(x[0], x[1], 0x5410), __byte_perm(x[2], x[3], 0x5410)}};
    }
  }
  template <bool kFull>
  __device__ __forceinline__ void load_from(const T* from, int count) {
    if constexpr (kFull) {
      raw = __ldcs(reinterpret_cast<const Raw*>(from));
    } else {
      unsigned x[kQuad] = {};
#pragma unroll
      for (int k = 0; k < kQuad; ++k) {
        if (k < count) x[k] = reinterpret_cast<const Bits*>(from)[k];
      }
      *this = of_bits(x);
    }
  }
  template <bool kFull>
  __device__ __forceinline__ void store_to(T* to, int count) const {
    if constexpr (kFull) {
      __stcs(reinterpret_cast<Raw*>(to), raw);
    } else {
#pragma unroll
      for (int k = 0; k < kQuad; ++k) {
        if (k < count) reinterpret_cast<Bits*>(to)[k] = static_cast<Bits>(bits(k));
      }
    }
  }
  static __device__ __forceinline__ Quad of(const float (&x)[kQuad]) {
    static_assert(sizeof(T) == 4);
    return {{__float_as_uint(x[0]), __float_as_uint(x[1]), __float_as_uint(x[2]), __float_as_uint(x[3])}};
  }
};

/// A parameter that is its own master.
struct PlainQuad {
  struct Address {
    float* value;
  };
  Quad<float> value;

  template <bool kFull>
  __device__ __forceinline__ void load_from(Address a, std::int64_t i, int count) {
    value.load_from<kFull>(a.value + i, count);
  }
  template <bool kFull>
  __device__ __forceinline__ void store_to(Address a, std::int64_t i, int count) const {
    value.store_to<kFull>(a.value + i, count);
  }
  __device__ __forceinline__ float operator[](int k) const { return value[k]; }
  __device__ __forceinline__ void set(const float (&x)[kQuad]) { value = Quad<float>::of(x); }
};

/// A parameter whose master is split: bits(master) = (bits(value) << 16) + low.
struct SplitQuad {
  struct Address {
    bf16* value;
    std::int16_t* low;
  };
  Quad<bf16> value;
  Quad<std::int16_t> low;

  template <bool kFull>
  __device__ __forceinline__ void load_from(Address a, std::int64_t i, int count) {
    value.load_from<kFull>(a.value + i, count);
    low.load_from<kFull>(a.low + i, count);
  }
  template <bool kFull>
  __device__ __forceinline__ void store_to(Address a, std::int64_t i, int count) const {
    value.store_to<kFull>(a.value + i, count);
    low.store_to<kFull>(a.low + i, count);
  }
  __device__ __forceinline__ float operator[](int k) const {
    const int rest = static_cast<std::int16_t>(low.bits(k));
    return __uint_as_float((value.bits(k) << 16) + static_cast<unsigned>(rest));
  }
  __device__ __forceinline__ void set(const float (&x)[kQuad]) {
    value.raw = {pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3])};
    unsigned rest[kQuad];
#pragma unroll
    for (int k = 0; k < kQuad; ++k) {
      const int difference = static_cast<int>(__float_as_uint(x[k]) - (value.bits(k) << 16));
      rest[k] = static_cast<unsigned>(x[k] != x[k] ? 0 : min(difference, 0x7FFF));
    }
    low = Quad<std::int16_t>::of_bits(rest);
  }
};

__device__ __forceinline__ float square_root(float x) {
  float y;
  asm("sqrt.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
/// a / b to about an ulp for b > 0, in a quarter of the instructions; 0 for an infinite b.
__device__ __forceinline__ float quotient(float a, float b) {
  float inverse;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(b));
  const float q = a * inverse, better = fmaf(fmaf(-b, q, a), inverse, q);
  return inverse == 0 ? q : better;
}

/// GradientFactor::on_cpu on the device, by one thread for its block; NaN where the step is left out. All
/// threads take part.
__device__ __forceinline__ float gradient_factor(const GradientFactor& f, float* shared) {
  if (f.norm == nullptr) return static_cast<float>(f.scale);
  if (threadIdx.x == 0) {
    const double norm = *f.norm;
    const double factor = f.clip > 0 ? f.scale * min(1.0, f.clip / (norm + 1e-6)) : f.scale;
    *shared = isfinite(norm) ? static_cast<float>(factor) : __uint_as_float(0x7FC00000u);
  }
  __syncthreads();
  return *shared;
}

/// Where quad q of this thread begins, and how many of its elements exist.
struct Place {
  std::int64_t begin;
  int count;
};
__device__ __forceinline__ Place place_of(int q, std::int64_t elements) {
  const std::int64_t quad = (static_cast<std::int64_t>(blockIdx.x) * kQuads + q) * kThreads + threadIdx.x;
  const std::int64_t begin = quad * kQuad, left = elements - begin;
  return {begin, static_cast<int>(left < 0 ? 0 : (left < kQuad ? left : kQuad))};
}

inline unsigned blocks_for(std::int64_t elements) {
  return grid_for(elements, std::int64_t{kThreads} * kQuads * kQuad);
}

/// Whether every quad of this block exists and can move as one.
__device__ __forceinline__ bool block_full(bool aligned, std::int64_t elements) {
  return aligned && (static_cast<std::int64_t>(blockIdx.x) + 1) * (kThreads * kQuads * kQuad) <= elements;
}

/// A block's part of a step: whole quads are all loaded before the first of them, and the gradient's factor,
/// is waited for; a block with a partial or unaligned quad takes one after the other. Each Held has load_from
/// and update.
template <class Full, class Partial, class Operands>
__device__ __forceinline__ void update_quads(const Operands& o, float* shared) {
  if (block_full(o.aligned, o.elements)) {
    Full held[kQuads];
#pragma unroll
    for (int q = 0; q < kQuads; ++q) held[q].load_from(o, q);
    const float scale = gradient_factor(o.gradient, shared);
    if (scale != scale) return;
#pragma unroll
    for (int q = 0; q < kQuads; ++q) held[q].update(o, q, scale);
  } else {
    const float scale = gradient_factor(o.gradient, shared);
    if (scale != scale) return;
#pragma unroll 1
    for (int q = 0; q < kQuads; ++q) {
      Partial held;
      held.load_from(o, q);
      held.update(o, q, scale);
    }
  }
}

/// Whether quads can move as one.
template <class... T>
bool quads_aligned(const T*... data) {
  return (aligned_rows(data, 0, kQuad) && ...);
}

}  // namespace ridge::kernels::device
