// Attention over a spread sequence, beside one rank that has all of it.
#pragma once

#include "launch/command_line.h"

namespace ridge {

class Context;

/// `bench attention`: cp is all ranks.
void add_bench_attention(const Command& bench, Context& context);

}  // namespace ridge
