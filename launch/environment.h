// The only place that reads environment variables.
#pragma once

#include <optional>

namespace ridge {

/// Whether mpirun, srun or another MPI launcher started this process.
bool launched_by_mpi();

/// RIDGE_THREADS: threads of one rank.
std::optional<int> threads_from_environment();

}  // namespace ridge
