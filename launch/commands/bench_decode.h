// Decoding and prompts beside the machine's limits, and the longest text that memory holds.
#pragma once

#include "launch/command_line.h"

namespace ridge {

class Context;

/// `bench decode`, `bench prefill` and `bench context`, on random weights in any weight format.
void add_bench_decode(const Command& bench, Context& context);

}  // namespace ridge
