// Kernels of a stream whose beginnings overlap (programmatic dependent launch): a kernel starts once all
// blocks of the one before it have begun and said so, reads what no kernel before it writes (weights), and
// waits for the rest.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <utility>

#include "core/base/cuda_check.h"

namespace ridge::kernels::device {

/// Until all kernels before this one are done and what they wrote is seen. Before it a kernel may neither
/// read what they write nor write anything. Every thread that does so calls it.
__device__ __forceinline__ void wait_for_previous() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

/// The next kernel may begin as soon as every block has called this or ended.
__device__ __forceinline__ void let_next_begin() { asm volatile("griddepcontrol.launch_dependents;"); }

/// Lets a kernel have `most` bytes of dynamic shared memory. A multiprocessor that changes its split between
/// shared memory and L1 has to be empty: kernels that overlap all prefer the largest share.
template <class... Parameters>
cudaError_t allow_shared_memory(void (*kernel)(Parameters...), int most) {
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
  if (error != cudaSuccess) return error;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                              cudaSharedmemCarveoutMaxShared);
}

/// Queues a kernel that calls wait_for_previous(), in clusters of so many blocks. With `early` it may begin
/// before the kernel ahead of it has ended.
template <class... Parameters, class... Arguments>
void launch_clusters_waiting(cudaStream_t stream, bool early, unsigned cluster, void (*kernel)(Parameters...),
                             dim3 grid, unsigned threads, std::size_t shared_bytes,
                             Arguments&&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  cudaLaunchAttribute attributes[2]{};
  attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[0].val.programmaticStreamSerializationAllowed = early ? 1 : 0;
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim.x = cluster;
  attributes[1].val.clusterDim.y = attributes[1].val.clusterDim.z = 1;
  config.attrs = attributes;
  config.numAttrs = cluster > 1 ? 2 : 1;
  check_cuda(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...));
}
/// The same without clusters.
template <class... Parameters, class... Arguments>
void launch_waiting(cudaStream_t stream, bool early, void (*kernel)(Parameters...), dim3 grid,
                    unsigned threads, std::size_t shared_bytes, Arguments&&... arguments) {
  launch_clusters_waiting(stream, early, 1, kernel, grid, threads, shared_bytes,
                          std::forward<Arguments>(arguments)...);
}
template <class... Parameters, class... Arguments>
void launch_overlapped(cudaStream_t stream, void (*kernel)(Parameters...), dim3 grid, unsigned threads,
                       std::size_t shared_bytes, Arguments&&... arguments) {
  launch_waiting(stream, true, kernel, grid, threads, shared_bytes, std::forward<Arguments>(arguments)...);
}

}  // namespace ridge::kernels::device
