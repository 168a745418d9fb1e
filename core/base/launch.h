// The one door: every kernel, copy and collective states its work where it is launched.
#pragma once

#include <algorithm>
#include <utility>

#include "core/base/error.h"
#include "core/base/profiler.h"
#include "core/base/stream.h"

namespace ridge {

/// The least that an op must do, from shapes and formats alone.
struct Work {
  double flops = 0;  // operations that must be done
  double bytes = 0;  // bytes that must move to and from memory
};

/// Runs `fn` on `stream` as `op`. On meta it skips `fn` and advances the virtual clock instead.
template <class F>
void launch(Stream& stream, const char* op, Work work, F&& fn) {
  if (stream.device() == Device::meta) {
    detail::launch_on_meta(stream, op, work);
    return;
  }
  if (stream.device() == Device::cuda) fail("{}: this build has no CUDA kernels", op);
  if (stream.profiler == nullptr) {
    std::forward<F>(fn)();
    return;
  }
  const detail::LaunchTimer timer(*stream.profiler, op, work);
  std::forward<F>(fn)();
}

}  // namespace ridge
