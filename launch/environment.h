// The only place that reads environment variables.
#pragma once

#include <optional>
#include <string>

namespace ridge {

/// Whether mpirun, srun or another MPI launcher started this process.
bool launched_by_mpi();

/// This machine's name.
std::string host_name();

/// Before CUDA starts: as many hardware queues as there can be, so that streams that wait for other ranks do
/// not hold up others. What the user has set stays.
void prepare_cuda_environment();

/// RIDGE_THREADS: threads of one rank.
std::optional<int> threads_from_environment();

/// Where choices of matrix products are kept: $XDG_CACHE_HOME/ridge/matmul.txt, or below ~/.cache; empty
/// where neither is known.
std::string matmul_choices_file();

}  // namespace ridge
