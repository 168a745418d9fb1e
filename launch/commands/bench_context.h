// The longest text that memory holds.
#pragma once

#include "launch/command_line.h"

namespace ridge {

class Context;

/// `bench context`: by bisection, beside what the same program needs on meta.
void add_bench_context(const Command& bench, Context& context);

}  // namespace ridge
