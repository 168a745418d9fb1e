// Whole tensors out of the pieces that ranks hold.
#pragma once

#include "launch/checkpoint.h"
#include "parallel/communicator.h"

namespace ridge {

/// The whole tensor on the CPU, the same on every rank: all of them call it, those that hold nothing of it
/// with a piece without boxes. Every element comes from the one rank whose piece writes it.
Tensor gather_whole(const Piece& piece, parallel::Communicator& ranks);

}  // namespace ridge
