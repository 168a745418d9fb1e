#include "kernels/all_reduce_small.h"
#include "kernels/device/fault.cuh"
#include "kernels/device/launch.cuh"
#include "kernels/device/pack.cuh"

namespace ridge::kernels::cuda {
namespace {

using device::Pack;
using small_sum::Cut;
using small_sum::kMostRanks;
using small_sum::kThreads;
using small_sum::Layout;

static_assert(sizeof(Pack<float>) == small_sum::kPack && kMostRanks <= device::kWarp);

/// What was written before, by this thread or before a barrier of its block, is seen by who sees this.
__device__ __forceinline__ void store_release(std::uint32_t* to, std::uint32_t value) {
  asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(__cvta_generic_to_global(to)), "r"(value)
               : "memory");
}
__device__ __forceinline__ std::uint32_t load_acquire(const std::uint32_t* from) {
  std::uint32_t value;
  asm volatile("ld.acquire.sys.global.u32 %0, [%1];"
               : "=r"(value)
               : "l"(__cvta_generic_to_global(from))
               : "memory");
  return value;
}
/// Not from L1, which other GPUs' stores do not reach.
template <class T>
__device__ __forceinline__ Pack<T> load_shared_by_ranks(const std::byte* from) {
  Pack<T> p;
  asm volatile("ld.relaxed.sys.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(p.raw.x), "=r"(p.raw.y), "=r"(p.raw.z), "=r"(p.raw.w)
               : "l"(__cvta_generic_to_global(from))
               : "memory");
  return p;
}
__device__ __forceinline__ std::int64_t nanoseconds_now() {
  std::int64_t now;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
  return now;
}

__device__ __forceinline__ std::uint32_t* words(std::byte* region) {
  return reinterpret_cast<std::uint32_t*>(region);
}

/// A rank that never comes ends the kernel, and all that this process would run after it.
__device__ __forceinline__ void await(const std::uint32_t* flag, std::uint32_t use, int peer,
                                      std::int64_t limit_ns, ridge::cuda::Fault* fault) {
  if (small_sum::has_come(load_acquire(flag), use)) return;
  const std::int64_t begin = nanoseconds_now();
  while (!small_sum::has_come(load_acquire(flag), use)) {
    if (nanoseconds_now() - begin <= limit_ns) continue;
    device::report(fault, ridge::cuda::FaultKind::absent_rank, peer, use, limit_ns);
    __threadfence_system();  // the host reads it after the trap
    __trap();
  }
}

/// Elements of one pack from x [n], zeros beyond the end.
template <class T>
__device__ __forceinline__ Pack<T> load_input(const T* x, std::int64_t pack, std::int64_t n, bool aligned) {
  constexpr int kSize = Pack<T>::kSize;
  const std::int64_t begin = pack * kSize;
  if (aligned && begin + kSize <= n) return device::load_pack(x + begin);
  acc_t<T> values[kSize];
#pragma unroll
  for (int k = 0; k < kSize; ++k) values[k] = begin + k < n ? device::load(x[begin + k]) : 0;
  return Pack<T>::of(values);
}
template <class T>
__device__ __forceinline__ void store_output(T* y, std::int64_t pack, std::int64_t n, bool aligned,
                                             const acc_t<T> (&sum)[Pack<T>::kSize]) {
  constexpr int kSize = Pack<T>::kSize;
  const std::int64_t begin = pack * kSize;
  if (aligned && begin + kSize <= n) return device::store_pack(y + begin, Pack<T>::of(sum));
#pragma unroll
  for (int k = 0; k < kSize; ++k) {
    if (begin + k < n) y[begin + k] = device::round_to<T>(sum[k]);
  }
}

/// y [n] = the ranks' sum of x [n]. Block c is channel c: see all_reduce_small_layout.h. y may be x: a thread
/// writes where it alone has read.
template <class T>
__global__ void __launch_bounds__(kThreads)
    all_reduce_small_kernel(const __grid_constant__ SmallSumRanks ranks, const __grid_constant__ Cut cut,
                            const T* x, T* y, std::int64_t n, bool aligned, std::int64_t limit_ns,
                            ridge::cuda::Fault* fault) {
  constexpr int kSize = Pack<T>::kSize;
  const int channel = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  std::uint32_t* last_use = words(ranks.region[ranks.rank]) + Layout::use_word(channel);
  const std::uint32_t use = *last_use + 1;
  const std::int64_t slot = ranks.layout.slot_byte(channel, use);
  const std::int64_t first = cut.begin(channel), count = cut.count(channel);

  T* mine = reinterpret_cast<T*>(ranks.region[ranks.rank] + slot);
  for (std::int64_t i = thread; i < count; i += kThreads)
    device::store_pack(mine + i * kSize, load_input(x, first + i, n, aligned));
  __syncthreads();  // all of the block's values are there, and all have read the count

  const bool meets = thread < ranks.size && thread != ranks.rank;
  if (meets) store_release(words(ranks.region[thread]) + Layout::flag_word(channel, ranks.rank), use);
  __syncwarp();  // everybody is told before anybody is waited for
  if (meets)
    await(words(ranks.region[ranks.rank]) + Layout::flag_word(channel, thread), use, thread, limit_ns, fault);
  if (thread == 0) *last_use = use;
  __syncthreads();

  for (std::int64_t i = thread; i < count; i += kThreads) {
    Pack<T> parts[kMostRanks];
#pragma unroll
    for (int r = 0; r < kMostRanks; ++r) {
      if (r < ranks.size) parts[r] = load_shared_by_ranks<T>(ranks.region[r] + slot + i * small_sum::kPack);
    }
    acc_t<T> sum[kSize];
#pragma unroll
    for (int k = 0; k < kSize; ++k) sum[k] = parts[0][k];
#pragma unroll
    for (int r = 1; r < kMostRanks; ++r) {
      if (r >= ranks.size) break;
#pragma unroll
      for (int k = 0; k < kSize; ++k) sum[k] += parts[r][k];
    }
    store_output(y, first + i, n, aligned, sum);
  }
}

}  // namespace

template <class T>
void all_reduce_small(Stream& stream, const SmallSumRanks& ranks, View<const T> x, View<T> y,
                      std::chrono::nanoseconds limit) {
  const std::int64_t n = x.numel();
  const Cut cut = Cut::of(small_sum::packs_of(n * std::int64_t{sizeof(T)}));
  const bool aligned = device::aligned_rows(x.data, 0) && device::aligned_rows(y.data, 0);
  all_reduce_small_kernel<T><<<static_cast<unsigned>(cut.channels), kThreads, 0, device::native(stream)>>>(
      ranks, cut, x.data, y.data, n, aligned, limit.count(), ridge::cuda::fault_slot());
}

template void all_reduce_small<float>(Stream&, const SmallSumRanks&, View<const float>, View<float>,
                                      std::chrono::nanoseconds);
template void all_reduce_small<bf16>(Stream&, const SmallSumRanks&, View<const bf16>, View<bf16>,
                                     std::chrono::nanoseconds);

}  // namespace ridge::kernels::cuda
