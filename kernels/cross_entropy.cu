// R rows, V ids. A block goes over one row at a time; rows may begin at any address.
#include "kernels/cross_entropy.h"

#include <limits>

#include "kernels/device/block.cuh"
#include "kernels/device/fault.cuh"
#include "kernels/device/launch.cuh"
#include "kernels/device/pack.cuh"

namespace ridge::kernels::cuda {
namespace {

using device::block_all, device::kVec, device::load, device::load_pack, device::load_pack_once;
using device::native, device::Pack, device::round_to, device::store_pack_once;
using ridge::cuda::Fault;

constexpr int kForwardBlock = 512, kBackwardBlock = 256;  // threads
constexpr int kInPlaceBlock = 768;  // one a multiprocessor: its row is still in the caches the second time
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
  template <class T>
  __device__ __forceinline__ void add(Pack<T> (&x)[kPacks<T>]) {
    A greatest = top;
#pragma unroll
    for (int u = 0; u < kPacks<T>; ++u) {
#pragma unroll
      for (int k = 0; k < kVec<T>; ++k) greatest = max(greatest, x[u][k]);
      x[u].forget_unpacked();
    }
    const A shift = shift_for(greatest);
    sum *= exponential(top - shift);
    top = greatest;
    A part[kPacks<T>] = {};
#pragma unroll
    for (int u = 0; u < kPacks<T>; ++u) {
#pragma unroll
      for (int k = 0; k < kVec<T>; ++k) part[u] += exponential(x[u][k] - shift);
    }
#pragma unroll
    for (int u = 0; u < kPacks<T>; ++u) sum += part[u];
  }
};

/// log(sum(exp(row))), the same in every thread. The next packs are on their way while some are worked on.
template <class T, int kThreads, bool kOnce>
__device__ __forceinline__ acc_t<T> log_sum_exp(const T* row, const Span& span, acc_t<T>* shared) {
  using A = acc_t<T>;
  const int thread = static_cast<int>(threadIdx.x);
  A nothing[kVec<T>];
#pragma unroll
  for (int k = 0; k < kVec<T>; ++k) nothing[k] = minus_infinity<A>();
  const Pack<T> absent = Pack<T>::of(nothing);
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
  return top + log(block_all<device::Sum>(share, shared, A(0)));
}

/// Target of a row: kIgnoreIndex for a bad one, which thread 0 reports where `tells`.
__device__ __forceinline__ int target_of(const std::int32_t* targets_R, std::int64_t step, std::int64_t r,
                                         std::int64_t vocabulary, Fault* fault, bool tells = true) {
  const int id = targets_R[r * step];
  if (id == kIgnoreIndex || (id >= 0 && id < vocabulary)) return id;
  if (tells && threadIdx.x == 0) device::report(fault, ridge::cuda::FaultKind::target_id, r, id, vocabulary);
  return static_cast<int>(kIgnoreIndex);
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

template <class T>
struct Operands {
  const T* logits_RV;
  T* dlogits_RV;
  const std::int32_t* targets_R;
  acc_t<T>*loss_R, *lse_R;
  const acc_t<T>*known_lse_R, *dloss_R;
  std::int64_t rows, vocabulary, logits_stride, dlogits_stride, target_stride, loss_stride, lse_stride;
  Fault* fault;
};

template <class T>
__global__ void __launch_bounds__(kForwardBlock, 2) forward_kernel(Operands<T> o) {
  using A = acc_t<T>;
  __shared__ A shared[33];
  for (std::int64_t r = blockIdx.x; r < o.rows; r += gridDim.x) {
    const T* row = o.logits_RV + r * o.logits_stride;
    const A lse = log_sum_exp<T, kForwardBlock, true>(row, span_of(row, row, o.vocabulary), shared);
    if (threadIdx.x != 0) continue;
    const int target = target_of(o.targets_R, o.target_stride, r, o.vocabulary, o.fault);
    o.lse_R[r * o.lse_stride] = lse;
    o.loss_R[r * o.loss_stride] = target == kIgnoreIndex ? A(0) : lse - load(row[target]);
  }
}

template <class T>
__global__ void __launch_bounds__(kBackwardBlock) backward_kernel(Operands<T> o) {
  for (std::int64_t r = blockIdx.x; r < o.rows; r += gridDim.x) {
    const T* row = o.logits_RV + r * o.logits_stride;
    T* drow = o.dlogits_RV + r * o.dlogits_stride;
    const int target = target_of(o.targets_R, o.target_stride, r, o.vocabulary, o.fault, blockIdx.y == 0);
    const Gradient<T> gradient{row,
                               drow,
                               span_of<T>(row, drow, o.vocabulary),
                               target,
                               o.known_lse_R[r * o.lse_stride],
                               o.dloss_R[r * o.loss_stride]};
    const int rounds = gradient.template rounds<kBackwardBlock>();
    for (int round = static_cast<int>(blockIdx.y); round < rounds; round += static_cast<int>(gridDim.y))
      gradient.template packs<kBackwardBlock>(round);
    if (blockIdx.y == 0) gradient.template edges<kBackwardBlock>();
  }
}

/// The second pass goes backwards: what the first read last is in the nearest cache.
template <class T>
__global__ void __launch_bounds__(kInPlaceBlock, 1) in_place_kernel(Operands<T> o, acc_t<T> scale) {
  using A = acc_t<T>;
  __shared__ A shared[33];
  for (std::int64_t r = blockIdx.x; r < o.rows; r += gridDim.x) {
    T* row = o.dlogits_RV + r * o.dlogits_stride;
    const Span span = span_of<T>(row, row, o.vocabulary);
    const int target = target_of(o.targets_R, o.target_stride, r, o.vocabulary, o.fault);
    A lse = 0, at_target = 0;
    if (target != kIgnoreIndex) {
      if (threadIdx.x == 0) at_target = load(row[target]);
      lse = log_sum_exp<T, kInPlaceBlock, false>(row, span, shared);
    }
    const Gradient<T> gradient{row, row, span, target, lse, scale};
    for (int round = gradient.template rounds<kInPlaceBlock>() - 1; round >= 0; --round)
      gradient.template packs<kInPlaceBlock>(round);
    gradient.template edges<kInPlaceBlock>();
    if (threadIdx.x == 0) o.loss_R[r * o.loss_stride] = target == kIgnoreIndex ? A(0) : lse - at_target;
  }
}

/// The extents and strides of what is there: each view has a row's stride first.
template <class T>
Operands<T> operands(View<const T> logits_RV, View<const std::int32_t> targets_R) {
  Operands<T> o{};
  o.logits_RV = logits_RV.data;
  o.targets_R = targets_R.data;
  o.rows = logits_RV.dim(0);
  o.vocabulary = logits_RV.dim(1);
  o.logits_stride = logits_RV.strides[0];
  o.target_stride = targets_R.strides[0];
  o.fault = ridge::cuda::fault_slot();
  return o;
}

}  // namespace

template <class T>
void cross_entropy(Stream& stream, View<const T> logits_RV, View<const std::int32_t> targets_R,
                   View<acc_t<T>> loss_R, View<acc_t<T>> lse_R) {
  Operands<T> o = operands(logits_RV, targets_R);
  if (o.rows == 0) return;
  o.loss_R = loss_R.data;
  o.loss_stride = loss_R.strides[0];
  o.lse_R = lse_R.data;
  o.lse_stride = lse_R.strides[0];
  forward_kernel<T><<<device::grid_for(o.rows, 1), kForwardBlock, 0, native(stream)>>>(o);
}

template <class T>
void cross_entropy_backward(Stream& stream, View<const T> logits_RV, View<const std::int32_t> targets_R,
                            View<const acc_t<T>> lse_R, View<const acc_t<T>> dloss_R, View<T> dlogits_RV) {
  Operands<T> o = operands(logits_RV, targets_R);
  if (o.rows == 0) return;
  o.dlogits_RV = dlogits_RV.data;
  o.dlogits_stride = dlogits_RV.strides[0];
  o.known_lse_R = lse_R.data;
  o.lse_stride = lse_R.strides[0];
  o.dloss_R = dloss_R.data;
  o.loss_stride = dloss_R.strides[0];
  const dim3 grid(device::grid_for(o.rows, 1),
                  device::grid_for(o.vocabulary, kVec<T> * kPacks<T> * kBackwardBlock, 65535));
  backward_kernel<T><<<grid, kBackwardBlock, 0, native(stream)>>>(o);
}

template <class T>
void cross_entropy_in_place(Stream& stream, View<T> logits_RV, View<const std::int32_t> targets_R,
                            double scale, View<acc_t<T>> loss_R) {
  Operands<T> o = operands(View<const T>(logits_RV), targets_R);
  if (o.rows == 0) return;
  o.dlogits_RV = logits_RV.data;
  o.dlogits_stride = logits_RV.strides[0];
  o.loss_R = loss_R.data;
  o.loss_stride = loss_R.strides[0];
  in_place_kernel<T>
      <<<device::grid_for(o.rows, 1), kInPlaceBlock, 0, native(stream)>>>(o, static_cast<acc_t<T>>(scale));
}

template void cross_entropy<float>(Stream&, View<const float>, View<const std::int32_t>, View<float>,
                                   View<float>);
template void cross_entropy_backward<float>(Stream&, View<const float>, View<const std::int32_t>,
                                            View<const float>, View<const float>, View<float>);
template void cross_entropy_in_place<float>(Stream&, View<float>, View<const std::int32_t>, double,
                                            View<float>);

template void cross_entropy<double>(Stream&, View<const double>, View<const std::int32_t>, View<double>,
                                    View<double>);
template void cross_entropy_backward<double>(Stream&, View<const double>, View<const std::int32_t>,
                                             View<const double>, View<const double>, View<double>);
template void cross_entropy_in_place<double>(Stream&, View<double>, View<const std::int32_t>, double,
                                             View<double>);

template void cross_entropy<bf16>(Stream&, View<const bf16>, View<const std::int32_t>, View<float>,
                                  View<float>);
template void cross_entropy_backward<bf16>(Stream&, View<const bf16>, View<const std::int32_t>,
                                           View<const float>, View<const float>, View<bf16>);
template void cross_entropy_in_place<bf16>(Stream&, View<bf16>, View<const std::int32_t>, double,
                                           View<float>);

}  // namespace ridge::kernels::cuda
