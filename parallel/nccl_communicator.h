// Ranks with one GPU each: NCCL for the GPUs' memory, another communicator for the hosts'.
#pragma once

#include <chrono>
#include <memory>

#include "parallel/communicator.h"

namespace ridge::parallel {

/// The ranks of `host`, which stays and carries what lies in host memory, barriers and the start of NCCL. One
/// process a rank; cuda::select_device has been called, with another GPU for each rank of a host. Every rank
/// calls this together.
///
/// One rank needs no NCCL: it gets a self communicator.
///
/// Collectives and messages on a GPU's memory run on a stream of their own, in the order of calls; a split
/// has another. A message's two ends must meet: the order of calls on all ranks has to allow that. If one is
/// not done `timeout` after it was asked for, or NCCL reports an error, a thread says so in one line on
/// stderr, aborts NCCL, and ends all ranks by host.abort; until they are gone, calls throw. Destroyed while
/// an error unwinds, it aborts NCCL, else it ends it together with the other ranks. A UserError in a build
/// without CUDA.
std::unique_ptr<Communicator> nccl_communicator(Communicator& host,
                                                std::chrono::milliseconds timeout = std::chrono::minutes(10));

}  // namespace ridge::parallel
