// What the parts of the emulated CUDA runtime share: errors, the one device, kernels and queued work.
#pragma once

#pragma GCC visibility push(default)
#include <cuda_runtime_api.h>
#pragma GCC visibility pop

#include <cstddef>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "tests/emulated_gpu/machine.h"

namespace ridge::emulated {

inline constexpr int kSharedDefault = 48 << 10, kSharedOptIn = 227 << 10, kSharedMultiprocessor = 228 << 10;
inline constexpr int kSharedReserved = 1 << 10;  // bytes a block, the system's
inline constexpr int kThreadsBlock = 1024, kThreadsMultiprocessor = 2048;

/// Kept for cudaGetLastError() of this thread, unless it is cudaSuccess; returned.
cudaError_t told(cudaError_t code);
/// cudaErrorLaunchFailure from the first kernel that failed on, as of a device whose context is lost.
cudaError_t device_state();
/// Says what happened on stderr, and breaks the device.
cudaError_t break_device(const std::string& what);
/// Work of all threads runs one after the other.
std::recursive_mutex& device_mutex();
/// Whether RIDGE_EMULATED_TRACE asks for a line a launch.
bool tracing();

/// Does it now, or keeps it for the graph that the stream is being captured into. Of what throws the
/// message is told and the device is broken.
cudaError_t enqueue(cudaStream_t stream, std::function<void()> work);
bool capturing(cudaStream_t stream);

/// A translation unit's device code, whose PTX is parsed at its first use.
class Binary {
 public:
  explicit Binary(const void* image) : image_(image) {}
  /// Throws std::runtime_error.
  Module& module();

 private:
  const void* image_;
  std::mutex mutex_;
  std::string ptx_;  // the module may look into it
  std::shared_ptr<Module> module_;
};

/// Of a host function or a cudaKernel_t; null: none is registered.
cudaKernel_t kernel_of(const void* function);

}  // namespace ridge::emulated

/// A kernel: what a cudaKernel_t points to.
struct CUkern_st {
  ridge::emulated::Binary* binary = nullptr;
  std::string name;                   // mangled
  std::optional<int> dynamic_shared;  // bytes allowed to a launch; none: what fits in the default
  int carveout = -1;
  bool wide_clusters = false;  // of more than 8 blocks
};
