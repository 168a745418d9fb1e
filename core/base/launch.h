// The one door: every kernel, copy and collective states its work where it is launched.
#pragma once

#include <algorithm>
#include <utility>

#include "core/base/cuda.h"
#include "core/base/error.h"
#include "core/base/profiler.h"
#include "core/base/stream.h"

namespace ridge {

/// The least that an op must do, from shapes and formats alone.
struct Work {
  double flops = 0;  // operations that must be done
  double bytes = 0;  // bytes that must move to and from memory
};

/// Whether this build has CUDA code: bodies for a GPU are compiled in only then.
inline constexpr bool kBuiltWithCuda = RIDGE_BUILT_WITH_CUDA != 0;

namespace detail {
[[noreturn]] void throw_no_cuda(const char* op);
}

/// Runs an op's body on `stream`: `on_cpu()` here, or `on_cuda()`, which queues it on the GPU. On meta it
/// skips both and advances the virtual clock.
template <class Cpu, class Cuda>
void launch(Stream& stream, const char* op, Work work, Cpu&& on_cpu, Cuda&& on_cuda) {
  if (stream.device() == Device::meta) {
    detail::launch_on_meta(stream, op, work);
    return;
  }
  const detail::LaunchTimer timer(stream, op, work);
  if (stream.device() == Device::cpu) {
    std::forward<Cpu>(on_cpu)();
  } else if constexpr (kBuiltWithCuda) {
    std::forward<Cuda>(on_cuda)();
    cuda::check_launch(op);
  } else {
    detail::throw_no_cuda(op);
  }
}

/// An op with a body for the CPU alone.
template <class Cpu>
void launch(Stream& stream, const char* op, Work work, Cpu&& on_cpu) {
  launch(stream, op, work, std::forward<Cpu>(on_cpu), [op] { detail::throw_no_cuda(op); });
}

}  // namespace ridge
