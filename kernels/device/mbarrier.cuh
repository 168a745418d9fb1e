// Barriers in shared memory that threads and copies arrive at (PTX ISA: mbarrier). Addresses are those of
// shared memory.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace ridge::kernels::device {

/// `arrivals` end a phase; begun by one thread, then fence_barriers() and a barrier of the block.
__device__ __forceinline__ void begin_barrier(std::uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
__device__ __forceinline__ void fence_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void arrive(std::uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
/// At a barrier of any block of the cluster. With kRelease, what the block's threads wrote before a barrier
/// of theirs is seen by those that wait.
template <bool kRelease>
__device__ __forceinline__ void arrive_in_cluster(std::uint32_t barrier) {
  if constexpr (kRelease) {
    asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
  } else {
    asm volatile("mbarrier.arrive.relaxed.cluster.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
  }
}
/// Arrives, and makes the phase wait for `bytes` of copies too.
__device__ __forceinline__ void arrive_expecting(std::uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}
/// A box of a tensor map, from column and row on.
__device__ __forceinline__ void copy_box(std::uint32_t to, const void* map, int column, int row,
                                         std::uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], "
      "[%4];" ::"r"(to),
      "l"(map), "r"(column), "r"(row), "r"(barrier)
      : "memory");
}

/// Until the phase of this parity has ended; the one before a barrier's first counts as ended.
__device__ __forceinline__ void await(std::uint32_t barrier, std::uint32_t parity) {
  asm volatile(
      "{\n.reg .pred done;\nagain:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@!done bra again;\n}\n" ::"r"(barrier),
      "r"(parity)
      : "memory");
}
/// The same, of arrivals from the whole cluster.
__device__ __forceinline__ void await_cluster(std::uint32_t barrier, std::uint32_t parity) {
  asm volatile(
      "{\n.reg .pred done;\nagain:\n"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n@!done bra again;\n}\n" ::
          "r"(barrier),
      "r"(parity)
      : "memory");
}

}  // namespace ridge::kernels::device
