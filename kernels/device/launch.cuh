// How kernels are started: the native stream, and grids for elementwise work.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "core/base/stream.h"

namespace ridge::kernels::device {

inline constexpr int kThreads = 256;  // threads a block, where nothing asks for another number
inline constexpr int kWarp = 32;

inline cudaStream_t native(const Stream& stream) { return static_cast<cudaStream_t>(stream.native()); }

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

/// Blocks for `items` items at `each` a block: at least 1, at most `most`; kernels loop over the rest.
inline unsigned grid_for(std::int64_t items, std::int64_t each, std::int64_t most = std::int64_t{1} << 30) {
  return static_cast<unsigned>(std::clamp<std::int64_t>(ceil_div(items, each), 1, most));
}

}  // namespace ridge::kernels::device
