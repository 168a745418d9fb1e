// What this machine can do at the most, measured.
#pragma once

#include "core/base/stream.h"

namespace ridge {

/// Best of several runs with the threads that this rank has, in about half a second: f32 matrix product
/// (1536^3), reading and copying buffers that no cache holds. Every rank of a host should measure at the same
/// time.
Ceilings measure_ceilings();

}  // namespace ridge
