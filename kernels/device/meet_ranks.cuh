// How a block of one rank meets the blocks of others that share memory: see all_reduce_small_layout.h.
#pragma once

#include "kernels/all_reduce_small.h"
#include "kernels/device/fault.cuh"
#include "kernels/device/pack.cuh"

namespace ridge::kernels::device {

static_assert(sizeof(Pack<float>) == small_sum::kPack && small_sum::kMostRanks <= kWarp);

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
    report(fault, ridge::cuda::FaultKind::absent_rank, peer, use, limit_ns);
    __threadfence_system();  // the host reads it after the trap
    __trap();
  }
}

/// Which use of a channel this is. All threads read it before they come to meet_ranks.
__device__ __forceinline__ std::uint32_t next_use(const SmallSumRanks& ranks, int channel) {
  return words(ranks.region[ranks.rank])[small_sum::Layout::use_word(channel)] + 1;
}

/// After all of the block's values are in its slot: returns when all ranks' are in theirs. Every thread calls
/// it once.
__device__ __forceinline__ void meet_ranks(const SmallSumRanks& ranks, int channel, std::uint32_t use,
                                           std::int64_t limit_ns, ridge::cuda::Fault* fault) {
  using small_sum::Layout;
  __syncthreads();  // all of the block's values are there, and all have read the count
  const int thread = static_cast<int>(threadIdx.x);
  std::uint32_t* mine = words(ranks.region[ranks.rank]);
  const bool meets = thread < ranks.size && thread != ranks.rank;
  if (meets) store_release(words(ranks.region[thread]) + Layout::flag_word(channel, ranks.rank), use);
  __syncwarp();  // everybody is told before anybody is waited for
  if (meets) await(mine + Layout::flag_word(channel, thread), use, thread, limit_ns, fault);
  if (thread == 0) mine[Layout::use_word(channel)] = use;
  __syncthreads();
}

}  // namespace ridge::kernels::device
