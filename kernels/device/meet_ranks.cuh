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

/// Until come() is true. A rank that never comes ends the kernel, and all that this process would run after
/// it.
template <class F>
__device__ __forceinline__ void await(const F& come, std::uint32_t use, int peer, std::int64_t limit_ns,
                                      ridge::cuda::Fault* fault) {
  if (come()) return;
  const std::int64_t begin = nanoseconds_now();
  for (unsigned looks = 1; !come(); ++looks) {
    if (looks % 64 != 0 || nanoseconds_now() - begin <= limit_ns) continue;
    report(fault, ridge::cuda::FaultKind::absent_rank, peer, use, limit_ns);
    __threadfence_system();  // the host reads it after the trap
    __trap();
  }
}

/// A pack with its marks: each 64 bits are 32 of values and a mark, and are written and read at once.
struct Marked {
  std::uint64_t words[4];

  static __device__ __forceinline__ Marked load(const std::byte* from) {
    Marked m;
    const auto at = __cvta_generic_to_global(from);
    asm volatile("ld.relaxed.sys.global.v2.u64 {%0, %1}, [%2];"
                 : "=l"(m.words[0]), "=l"(m.words[1])
                 : "l"(at)
                 : "memory");
    asm volatile("ld.relaxed.sys.global.v2.u64 {%0, %1}, [%2+16];"
                 : "=l"(m.words[2]), "=l"(m.words[3])
                 : "l"(at)
                 : "memory");
    return m;
  }
  static __device__ __forceinline__ void store(std::byte* to, const uint4& raw, std::uint32_t mark) {
    const std::uint64_t high = static_cast<std::uint64_t>(mark) << 32;
    const auto at = __cvta_generic_to_global(to);
    asm volatile("st.relaxed.sys.global.v2.u64 [%0], {%1, %2};" ::"l"(at), "l"(high | raw.x),
                 "l"(high | raw.y)
                 : "memory");
    asm volatile("st.relaxed.sys.global.v2.u64 [%0+16], {%1, %2};" ::"l"(at), "l"(high | raw.z),
                 "l"(high | raw.w)
                 : "memory");
  }
  __device__ __forceinline__ bool has(std::uint32_t mark) const {
    bool all = true;
#pragma unroll
    for (const std::uint64_t word : words) all = all && static_cast<std::uint32_t>(word >> 32) == mark;
    return all;
  }
  __device__ __forceinline__ uint4 raw() const {
    return {static_cast<unsigned>(words[0]), static_cast<unsigned>(words[1]), static_cast<unsigned>(words[2]),
            static_cast<unsigned>(words[3])};
  }
};

/// Which use of a channel this is. All threads read it before they come to meet_ranks.
__device__ __forceinline__ std::uint32_t next_use(const SmallSumRanks& ranks, int channel) {
  return words(ranks.region[ranks.rank])[small_sum::Layout::use_word(channel)] + 1;
}

__device__ __forceinline__ void tell(const SmallSumRanks& ranks, int channel, std::uint32_t use, int peer) {
  store_release(words(ranks.region[peer]) + small_sum::Layout::flag_word(channel, ranks.rank), use);
}
/// The same, of a use whose values are not looked for behind the flag.
__device__ __forceinline__ void count(const SmallSumRanks& ranks, int channel, std::uint32_t use, int peer) {
  std::uint32_t* to = words(ranks.region[peer]) + small_sum::Layout::flag_word(channel, ranks.rank);
  asm volatile("st.relaxed.sys.global.u32 [%0], %1;" ::"l"(__cvta_generic_to_global(to)), "r"(use)
               : "memory");
}
/// One thread says so when all have read next_use().
__device__ __forceinline__ void end_use(const SmallSumRanks& ranks, int channel, std::uint32_t use) {
  words(ranks.region[ranks.rank])[small_sum::Layout::use_word(channel)] = use;
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
  if (meets) tell(ranks, channel, use, thread);
  __syncwarp();  // everybody is told before anybody is waited for
  const std::uint32_t* flag = mine + Layout::flag_word(channel, thread);
  if (meets)
    await([&] { return small_sum::has_come(load_acquire(flag), use); }, use, thread, limit_ns, fault);
  if (thread == 0) end_use(ranks, channel, use);
  __syncthreads();
}

}  // namespace ridge::kernels::device
