// What this machine can do at the most, measured.
#pragma once

#include "core/base/dtype.h"
#include "core/base/stream.h"

namespace ridge {

/// Best of several runs, in about half a second: a matrix product (f32 on the CPU, of the size that its
/// threads ask for; 8192^3 in `dtype` on a GPU, random data), reading and copying buffers that no cache
/// holds. Every rank of a host should measure at the same time.
Ceilings measure_ceilings(Device device = Device::cpu, DType dtype = DType::f32);

}  // namespace ridge
