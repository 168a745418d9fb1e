// Barriers of barrier.cuh that copies and other blocks of a cluster arrive at, too. Addresses are those of
// shared memory.
#pragma once

#include "kernels/device/barrier.cuh"

namespace ridge::kernels::device {

/// After begin_barrier(), by the same thread, where others than the block's threads arrive.
__device__ __forceinline__ void fence_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
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
/// A tensor map, a kernel's parameter, that will be needed.
__device__ __forceinline__ void prefetch_map(const void* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
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

/// await(), of arrivals from the whole cluster.
__device__ __forceinline__ void await_cluster(std::uint32_t barrier, std::uint32_t parity) {
  asm volatile(
      "{\n.reg .pred done;\nagain:\n"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n@!done bra again;\n}\n" ::
          "r"(barrier),
      "r"(parity)
      : "memory");
}

}  // namespace ridge::kernels::device
