// Checkpoints: how long they hold up training, how fast they are written and read.
#pragma once

#include "launch/command_line.h"

namespace ridge {

class Context;

/// `bench checkpoint`: writes one beside training steps, and reads it into another layout.
void add_bench_checkpoint(const Command& bench, Context& context);

}  // namespace ridge
