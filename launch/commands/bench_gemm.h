// Few rows times a weight in every format, beside the measured read bandwidth and the product in bf16.
#pragma once

#include "launch/command_line.h"

namespace ridge {

class Context;

/// `bench gemm`: y [M, N] = x [M, K] w' in bf16, with weights that no cache holds. A UserError for a format
/// that is unknown or does not divide a shape.
void add_bench_gemm(const Command& bench, Context& context);

}  // namespace ridge
