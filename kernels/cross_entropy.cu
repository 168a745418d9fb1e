// R rows, V ids. A block goes over one row at a time. In place, rows of whole packs that fit stay in shared
// memory and registers between the two passes: memory is read once.
#include "kernels/cross_entropy.h"

#include <algorithm>

#include "core/base/cuda_check.h"
#include "kernels/cross_entropy_row.cuh"
#include "kernels/device/launch.cuh"

namespace ridge::kernels::cuda {
namespace {

using namespace cross_entropy_row;
using device::native;

constexpr int kForwardBlock = 512, kBackwardBlock = 256;  // threads
constexpr int kHeldThreads = 512;                         // of a multiprocessor, in one block or two
constexpr int kRound = 2, kLag = 3;  // packs of a thread in one round; rounds from a load to its use
constexpr int kInPlaceBlock = 768;   // one a multiprocessor: its row is still in the caches the second time

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

/// Copies to shared memory that a thread waits for by itself (PTX ISA: cp.async).
__device__ __forceinline__ void copy_16(void* shared, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                   static_cast<unsigned>(__cvta_generic_to_shared(shared))),
               "l"(from)
               : "memory");
}
__device__ __forceinline__ void close_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kOpen>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kOpen) : "memory");
}

/// One whole row stays on the multiprocessor between its two passes. Pack s * kThreads + t is thread t's own:
/// the first kHeld in registers, the others in shared memory.
template <class T, int kThreads, int kHeld>
struct HeldRow {
  using A = acc_t<T>;
  static constexpr int N = kVec<T>;
  int packs;
  uint4* slots;  // of this thread, kThreads apart

  static __device__ __forceinline__ int pack_of(int s) {
    return s * kThreads + static_cast<int>(threadIdx.x);
  }
  __device__ __forceinline__ uint4* slot(int round, int u) const {
    return slots + (round * kRound + u) * kThreads;
  }
  static __device__ __forceinline__ int pack_of(int round, int u) {
    return pack_of(kHeld + round * kRound + u);
  }
  __device__ __forceinline__ void fetch_held(Pack<T> (&held)[kHeld], const T* row) const {
#pragma unroll
    for (int s = 0; s < kHeld; ++s) {
      held[s] = absent_pack<T>();
      if (pack_of(s) < packs) held[s] = load_pack_once(row + pack_of(s) * std::int64_t{N});
    }
  }
  __device__ __forceinline__ void fetch(int round, const T* row) const {
#pragma unroll
    for (int u = 0; u < kRound; ++u) {
      const int i = pack_of(round, u);
      if (i < packs) copy_16(slot(round, u), row + i * std::int64_t{N});
    }
  }
  __device__ __forceinline__ void sum_up(int round, OnlineSum<A>& online) const {
    Pack<T> x[kRound];
#pragma unroll
    for (int u = 0; u < kRound; ++u) {
      x[u] = absent_pack<T>();
      if (pack_of(round, u) < packs) x[u].raw = *slot(round, u);
    }
    online.add(x);
  }
  /// The rounds that are still on their way, one after the other.
  template <int kOpen>
  __device__ __forceinline__ void sum_up_last(int rounds, OnlineSum<A>& online) const {
    wait_copies<kOpen>();
    if (rounds > kOpen) sum_up(rounds - 1 - kOpen, online);
    if constexpr (kOpen > 0) sum_up_last<kOpen - 1>(rounds, online);
  }
  static __device__ __forceinline__ void sum_up_held(const Pack<T> (&held)[kHeld], OnlineSum<A>& online) {
    static_assert(kHeld % 4 == 0);
#pragma unroll
    for (int s = 0; s < kHeld; s += 4) {
      Pack<T> x[4] = {held[s], held[s + 1], held[s + 2], held[s + 3]};
      online.add(x);
    }
  }
  __device__ __forceinline__ void store(int i, const Pack<T>& x, T* row, bool counts, A lse, A scale) const {
    A y[N];
#pragma unroll
    for (int k = 0; k < N; ++k) y[k] = exponential(x[k] - lse) * scale;
    if (i < packs) store_pack_once(row + i * std::int64_t{N}, counts ? Pack<T>::of(y) : Pack<T>{});
  }
  __device__ __forceinline__ void store(int round, T* row, bool counts, A lse, A scale) const {
    Pack<T> x[kRound];
#pragma unroll
    for (int u = 0; u < kRound; ++u)
      if (pack_of(round, u) < packs) x[u].raw = *slot(round, u);
#pragma unroll
    for (int u = 0; u < kRound; ++u) store(pack_of(round, u), x[u], row, counts, lse, scale);
  }
};

/// log(sum(exp(row))) in every thread, from what each has summed up. `shared` holds 64 values; one barrier a
/// call is enough when `turn` alternates.
template <int kThreads, class A>
__device__ __forceinline__ A joined_log_sum(const OnlineSum<A>& mine, A* shared, int turn) {
  constexpr int kWarps = kThreads / device::kWarp;
  const int lane = static_cast<int>(threadIdx.x) % device::kWarp;
  const int warp = static_cast<int>(threadIdx.x) / device::kWarp;
  A *tops = shared + turn * 32, *sums = tops + 16;
  A top = device::warp_all<device::Max>(mine.top);
  A sum = device::warp_all<device::Sum>(mine.sum * exponential(mine.top - OnlineSum<A>::shift_for(top)));
  if (lane == 0) tops[warp] = top, sums[warp] = sum;
  __syncthreads();
  const A their_top = lane < kWarps ? tops[lane] : minus_infinity<A>();
  top = device::warp_all<device::Max>(their_top);
  sum = lane < kWarps ? sums[lane] * exponential(their_top - OnlineSum<A>::shift_for(top)) : A(0);
  return top + log(device::warp_all<device::Sum>(sum));
}

/// While a row's gradient is written, the next row comes into the place that it leaves, and is summed up.
template <class T, int kThreads, int kHeld>
__global__ void __launch_bounds__(kThreads, kHeldThreads / kThreads)
    held_kernel(Operands<T> o, acc_t<T> scale, int rounds) {
  using A = acc_t<T>;
  extern __shared__ uint4 slots[];  // [rounds, kRound, kThreads]
  __shared__ A shared[64];
  const HeldRow<T, kThreads, kHeld> mine{static_cast<int>(o.vocabulary) / kVec<T>, slots + threadIdx.x};
  const std::int64_t step = gridDim.x;
  const auto owns = [](int target) {
    return static_cast<int>(threadIdx.x) == (target == kIgnoreIndex ? 0 : target / kVec<T> % kThreads);
  };
  Pack<T> held[kHeld];
  int target = 0, next_target = 0, turn = 0;
  A lse = 0;
  T at_target{};  // converted where it is used: nobody waits for it before
  std::int64_t following = blockIdx.x < o.rows ? o.targets_R[blockIdx.x * o.target_stride] : 0;
  for (std::int64_t r = blockIdx.x - step; r < o.rows; r += step) {
    const bool is_row = r >= 0, has_next = r + step < o.rows;
    T *row = o.dlogits_RV + r * o.dlogits_stride, *next = row + step * o.dlogits_stride;
    next_target = kIgnoreIndex;
    if (has_next) next_target = checked_target(following, r + step, o.vocabulary, o.fault);
    if (r + 2 * step < o.rows) following = o.targets_R[(r + 2 * step) * o.target_stride];
    const bool counts = target != kIgnoreIndex, next_counts = next_target != kIgnoreIndex;
    T next_at_target{};
    if (next_counts && owns(next_target)) next_at_target = next[next_target];
    if (is_row) {
#pragma unroll
      for (int s = 0; s < kHeld; ++s) mine.store(mine.pack_of(s), held[s], row, counts, lse, scale);
    }
    if (next_counts) mine.fetch_held(held, next);
    OnlineSum<A> online;
#pragma unroll 1
    for (int round = 0; round < rounds; ++round) {
      if (is_row) mine.store(round, row, counts, lse, scale);
      if (next_counts) mine.fetch(round, next);
      close_copies();
      wait_copies<kLag>();
      if (next_counts && round >= kLag) mine.sum_up(round - kLag, online);
    }
    if (is_row && owns(target)) {  // after its pack, which this thread wrote
      if (counts) row[target] = round_to<T>(expm1(load(at_target) - lse) * scale);
      o.loss_R[r * o.loss_stride] = counts ? lse - load(at_target) : A(0);
    }
    if (next_counts) {
      mine.sum_up_held(held, online);
      mine.template sum_up_last<kLag - 1>(rounds, online);
      lse = joined_log_sum<kThreads>(online, shared, turn);
      turn ^= 1;
    }
    target = next_target;
    at_target = next_at_target;
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

namespace {

/// Shared memory that the blocks of a multiprocessor may take, a block's own use aside.
struct SharedLimits {
  int block = 0, all = 0;
  SharedLimits() {
    const int gpu = ridge::cuda::selected_device();
    check_cuda(cudaDeviceGetAttribute(&block, cudaDevAttrMaxSharedMemoryPerBlockOptin, gpu));
    check_cuda(cudaDeviceGetAttribute(&all, cudaDevAttrMaxSharedMemoryPerMultiprocessor, gpu));
  }
  int for_blocks(int blocks) const {
    constexpr int kOwn = 512, kReserved = 1024;  // bytes: its static arrays; what the GPU takes for itself
    return std::min(block - kOwn, all / blocks - kOwn - kReserved);
  }
};

/// False where a row does not fit.
template <class T, int kThreads, int kHeld>
bool run_held(Stream& stream, const Operands<T>& o, acc_t<T> scale) {
  static const SharedLimits limits;
  constexpr int kBlocks = kHeldThreads / kThreads;  // a multiprocessor's
  const std::int64_t each = device::ceil_div(o.vocabulary / kVec<T>, kThreads);
  const std::int64_t rounds = device::ceil_div(std::max<std::int64_t>(0, each - kHeld), kRound);
  const std::int64_t bytes = rounds * kRound * kThreads * 16;
  if (bytes > limits.for_blocks(kBlocks)) return false;
  const auto kernel = held_kernel<T, kThreads, kHeld>;
  const int shared = static_cast<int>(bytes);
  const auto set = [&](cudaFuncAttribute name, int value) {
    check_cuda(cudaFuncSetAttribute(kernel, name, value));
  };
  set(cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
  set(cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
  const unsigned blocks = device::grid_for(o.rows, 1, std::int64_t{kBlocks} * ridge::cuda::multiprocessors());
  kernel<<<blocks, kThreads, static_cast<std::size_t>(shared), native(stream)>>>(o, scale,
                                                                                 static_cast<int>(rounds));
  return true;
}

/// Rows of whole packs that fit on a multiprocessor; short ones gain nothing.
template <class T>
bool run_held(Stream& stream, const Operands<T>& o, acc_t<T> scale) {
  constexpr int kLeast = 8192;  // ids
  if constexpr (sizeof(T) > 4) {
    return false;
  } else {
    if (o.vocabulary < kLeast || o.vocabulary % kVec<T> != 0 ||
        !device::aligned_rows(o.dlogits_RV, o.dlogits_stride))
      return false;
    return run_held<T, 256, 4>(stream, o, scale) || run_held<T, 512, 4>(stream, o, scale) ||
           run_held<T, 512, 12>(stream, o, scale);
  }
}

}  // namespace

template <class T>
void cross_entropy_in_place(Stream& stream, View<T> logits_RV, View<const std::int32_t> targets_R,
                            double scale, View<acc_t<T>> loss_R) {
  Operands<T> o = operands(View<const T>(logits_RV), targets_R);
  if (o.rows == 0) return;
  o.dlogits_RV = logits_RV.data;
  o.dlogits_stride = logits_RV.strides[0];
  o.loss_R = loss_R.data;
  o.loss_stride = loss_R.strides[0];
  if (run_held(stream, o, static_cast<acc_t<T>>(scale))) return;
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
