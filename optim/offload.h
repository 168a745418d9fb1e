// Optimizer state in page-locked host memory, which visits the GPU for each update (ZeRO-Offload's saving,
// Ren et al., 2021, with the arithmetic left on the GPU: the same bits).
#pragma once

#include "core/tensor.h"

namespace ridge::optim {

/// Zeros of `shape` for parameters on `device`: in host memory for a GPU; on meta that stands for one they
/// take no memory.
Tensor offloaded_zeros(const Shape& shape, DType dtype, Device device);

/// A copy on `device` of what offloaded_zeros gave; queued.
Tensor fetch_state(const Tensor& kept, Device device);
/// Takes it back; queued.
void return_state(const Tensor& visitor, const Tensor& kept);

}  // namespace ridge::optim
