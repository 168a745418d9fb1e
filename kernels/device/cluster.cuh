// Blocks of a cluster run side by side and write each other's shared memory (PTX ISA: barrier.cluster, mapa,
// st.async). Threads that have ended count as arrived.
#pragma once

#include <cuda_runtime.h>

namespace ridge::kernels::device {

__device__ __forceinline__ unsigned cluster_rank() {
  unsigned rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

/// Orders nothing: that this block has begun, so that its shared memory may be written.
__device__ __forceinline__ void cluster_arrive_relaxed() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
/// Until all threads of the cluster have arrived; one wait an arrival.
__device__ __forceinline__ void cluster_wait() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

/// Where `address` of this block's shared memory lies in that of block `rank`.
__device__ __forceinline__ unsigned shared_of(unsigned address, unsigned rank) {
  unsigned there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
  return there;
}
/// 16 bytes to `address`, of which the barrier there is told as of a copy's.
__device__ __forceinline__ void send_there(unsigned address, unsigned barrier, const float (&x)[4]) {
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(
          address),
      "f"(x[0]), "f"(x[1]), "f"(x[2]), "f"(x[3]), "r"(barrier)
      : "memory");
}

}  // namespace ridge::kernels::device
