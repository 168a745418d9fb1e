// What a GPU's cross entropies do with one row of logits. A block goes over one row at a time; rows may begin
// at any address.
#pragma once

#include <cstdint>
#include <limits>
#include <type_traits>

#include "core/base/cuda.h"
#include "kernels/cross_entropy.h"
#include "kernels/device/block.cuh"
#include "kernels/device/fault.cuh"
#include "kernels/device/pack.cuh"

namespace ridge::kernels::cuda::cross_entropy_row {

using device::block_all, device::kVec, device::load, device::load_pack, device::load_pack_once;
using device::Pack, device::round_to, device::store_pack_once;
using ridge::cuda::Fault;

template <class T>
constexpr int kPacks = std::is_same_v<T, double> ? 1 : 4;  // that a thread loads at once

/// e^x, by the hardware's 2^x for f32: relative error 2^-22, subnormal results are zero.
__device__ __forceinline__ float exponential(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x * 1.44269504f));
  return y;
}
__device__ __forceinline__ double exponential(double x) { return exp(x); }

template <class A>
__device__ __forceinline__ A minus_infinity() {
  return -std::numeric_limits<A>::infinity();
}

/// A row cut into single elements up to a multiple of 16 bytes, packs, and the single elements left.
struct Span {
  int head, packs, tail;
  int tail_begin;
};
template <class T>
__device__ __forceinline__ Span span_of(const T* row, const T* other, std::int64_t vocabulary) {
  const auto address = reinterpret_cast<std::uintptr_t>(row);
  const auto count = static_cast<int>(vocabulary);
  if ((address - reinterpret_cast<std::uintptr_t>(other)) % 16 != 0) return {count, 0, 0, count};
  const int head = min(count, static_cast<int>((16 - address % 16) % 16 / sizeof(T)));
  const int packs = (count - head) / kVec<T>, tail_begin = head + packs * kVec<T>;
  return {head, packs, count - tail_begin, tail_begin};
}

/// A sum of exponentials, relative to the greatest so far (Milakov and Gimelshein, 2018). NaN never is the
/// greatest, but enters the sum.
template <class A>
struct OnlineSum {
  A top = minus_infinity<A>(), sum = 0;

  static __device__ __forceinline__ A shift_for(A top) { return top == minus_infinity<A>() ? A(0) : top; }

  __device__ __forceinline__ void add(A x) {
    const A greatest = max(top, x), shift = shift_for(greatest);
    sum = sum * exponential(top - shift) + exponential(x - shift);
    top = greatest;
  }
  template <class T, int U>
  __device__ __forceinline__ void add(Pack<T> (&x)[U]) {
    A greatest = top;
#pragma unroll
    for (int u = 0; u < U; ++u) {
#pragma unroll
      for (int k = 0; k < kVec<T>; ++k) greatest = max(greatest, x[u][k]);
      x[u].forget_unpacked();
    }
    const A shift = shift_for(greatest);
    sum *= exponential(top - shift);
    top = greatest;
    A part[U] = {};
#pragma unroll
    for (int u = 0; u < U; ++u) {
#pragma unroll
      for (int k = 0; k < kVec<T>; ++k) part[u] += exponential(x[u][k] - shift);
    }
#pragma unroll
    for (int u = 0; u < U; ++u) sum += part[u];
  }
};

/// Stands where a row has no more: adds nothing to a sum.
template <class T>
__device__ __forceinline__ Pack<T> absent_pack() {
  acc_t<T> nothing[kVec<T>];
#pragma unroll
  for (int k = 0; k < kVec<T>; ++k) nothing[k] = minus_infinity<acc_t<T>>();
  return Pack<T>::of(nothing);
}

/// Of a whole row, the same in every thread. The next packs are on their way while some are worked on.
template <class T, int kThreads, bool kOnce>
__device__ __forceinline__ OnlineSum<acc_t<T>> sum_of_row(const T* row, const Span& span, acc_t<T>* shared) {
  using A = acc_t<T>;
  const int thread = static_cast<int>(threadIdx.x);
  const Pack<T> absent = absent_pack<T>();
  const auto fetch = [&](Pack<T>(&into)[kPacks<T>], int first) {
#pragma unroll
    for (int u = 0; u < kPacks<T>; ++u) {
      const int i = first + u * kThreads;
      const T* from = row + span.head + i * static_cast<std::int64_t>(kVec<T>);
      into[u] = absent;
      if (i < span.packs) into[u] = kOnce ? load_pack_once(from) : load_pack(from);
    }
  };
  OnlineSum<A> online;
  Pack<T> now[kPacks<T>], next[kPacks<T>];
  fetch(next, thread);
  for (int i = thread; i < span.packs; i += kPacks<T> * kThreads) {
#pragma unroll
    for (int u = 0; u < kPacks<T>; ++u) now[u] = next[u];
    fetch(next, i + kPacks<T> * kThreads);
    online.add(now);
  }
#pragma unroll 1
  for (int i = thread; i < span.head; i += kThreads) online.add(load(row[i]));
#pragma unroll 1
  for (int i = thread; i < span.tail; i += kThreads) online.add(load(row[span.tail_begin + i]));
  const A top = block_all<device::Max>(online.top, shared, minus_infinity<A>());
  const A share = online.sum * exponential(online.top - OnlineSum<A>::shift_for(top));
  return {top, block_all<device::Sum>(share, shared, A(0))};
}
/// log(sum(exp(row)))
template <class T, int kThreads, bool kOnce>
__device__ __forceinline__ acc_t<T> log_sum_exp(const T* row, const Span& span, acc_t<T>* shared) {
  const OnlineSum<acc_t<T>> online = sum_of_row<T, kThreads, kOnce>(row, span, shared);
  return online.top + log(online.sum);
}

/// The id where it counts: kIgnoreIndex for a bad one, which thread 0 reports where `tells`.
__device__ __forceinline__ int checked_target(std::int64_t id, std::int64_t r, std::int64_t vocabulary,
                                              Fault* fault, bool tells = true) {
  if (id == kIgnoreIndex || (id >= 0 && id < vocabulary)) return static_cast<int>(id);
  if (tells && threadIdx.x == 0) device::report(fault, ridge::cuda::FaultKind::target_id, r, id, vocabulary);
  return static_cast<int>(kIgnoreIndex);
}
__device__ __forceinline__ int target_of(const std::int32_t* targets_R, std::int64_t step, std::int64_t r,
                                         std::int64_t vocabulary, Fault* fault, bool tells = true) {
  return checked_target(targets_R[r * step], r, vocabulary, fault, tells);
}

/// (softmax - onehot) * scale of one row; zeros where nothing is the target.
template <class T>
struct Gradient {
  using A = acc_t<T>;
  const T* logits_V;
  T* dlogits_V;  // may be the logits
  Span span;
  int target;
  A lse, scale;

  __device__ __forceinline__ void element(int i) const {
    A y = 0;
    if (target != kIgnoreIndex) {
      const A x = load(logits_V[i]) - lse;
      y = (i == target ? expm1(x) : exponential(x)) * scale;
    }
    dlogits_V[i] = round_to<T>(y);
  }
  template <int kThreads>
  __device__ __forceinline__ void edges() const {
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < span.head; i += kThreads) element(i);
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < span.tail; i += kThreads) element(span.tail_begin + i);
  }
  /// This thread's packs of a round: kPacks for each thread of the block.
  template <int kThreads>
  __device__ __forceinline__ void packs(int round) const {
    constexpr int N = kVec<T>;
    const int first = round * kPacks<T> * kThreads + static_cast<int>(threadIdx.x);
    const bool counts = target != kIgnoreIndex;
    Pack<T> x[kPacks<T>];
    A at_target = 0;
    bool mine = false;
#pragma unroll
    for (int u = 0; u < kPacks<T>; ++u) {
      const int i = first + u * kThreads;
      if (i < span.packs && counts) x[u] = load_pack(logits_V + span.head + i * std::int64_t{N});
    }
#pragma unroll
    for (int u = 0; u < kPacks<T>; ++u) {
      const int i = first + u * kThreads, begin = span.head + i * N;
      if (i >= span.packs) continue;
      if (target >= begin && target < begin + N) {
        mine = true;
#pragma unroll
        for (int k = 0; k < N; ++k) at_target = begin + k == target ? x[u][k] : at_target;
      }
      A y[N];
#pragma unroll
      for (int k = 0; k < N; ++k) y[k] = exponential(x[u][k] - lse) * scale;
      store_pack_once(dlogits_V + begin, counts ? Pack<T>::of(y) : Pack<T>{});
    }
    if (mine) dlogits_V[target] = round_to<T>(expm1(at_target - lse) * scale);
  }
  template <int kThreads>
  __device__ __forceinline__ int rounds() const {
    return (span.packs + kPacks<T> * kThreads - 1) / (kPacks<T> * kThreads);
  }
};

}  // namespace ridge::kernels::cuda::cross_entropy_row
