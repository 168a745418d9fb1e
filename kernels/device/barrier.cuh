// Barriers in shared memory by which warps of a block tell each other how far they are (PTX ISA: mbarrier).
// Unlike a fence they do not wait for a thread's copies under way.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace ridge::kernels::device {

/// `arrivals` end a phase. One thread begins it, before a barrier of the block.
__device__ __forceinline__ void begin_barrier(std::uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
__device__ __forceinline__ void arrive(std::uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
/// Arrives; how many arrivals the phase wanted before this one.
__device__ __forceinline__ unsigned arrive_and_count(std::uint32_t barrier) {
  unsigned count;
  asm volatile(
      "{\n"
      ".reg .b64 state;\n"
      "mbarrier.arrive.shared::cta.b64 state, [%1];\n"
      "mbarrier.pending_count.b64 %0, state;\n"
      "}\n"
      : "=r"(count)
      : "r"(barrier)
      : "memory");
  return count;
}
/// Until the phase of this parity has ended; the one before a barrier's first counts as ended.
__device__ __forceinline__ void await(std::uint32_t barrier, std::uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}\n" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

}  // namespace ridge::kernels::device
