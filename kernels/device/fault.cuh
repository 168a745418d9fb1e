// How a kernel tells the host of bad input.
#pragma once

#include <cstdint>

#include "core/base/cuda.h"

namespace ridge::kernels::device {

/// Keeps the first fault: `reserved` is taken by the thread that writes it.
__device__ inline void report(ridge::cuda::Fault* fault, ridge::cuda::FaultKind kind, std::int64_t place,
                              std::int64_t value, std::int64_t limit) {
  volatile ridge::cuda::Fault* slot = fault;
  if (slot->kind != 0 || atomicCAS(&fault->reserved, 0, 1) != 0) return;
  slot->place = place;
  slot->value = value;
  slot->limit = limit;
  __threadfence_system();
  slot->kind = static_cast<std::int32_t>(kind);
}

}  // namespace ridge::kernels::device
