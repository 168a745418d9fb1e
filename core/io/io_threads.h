// Threads of their own for reading and writing files: the pool of parallel_for stays free for arithmetic.
#pragma once

#include <cstdint>
#include <functional>

namespace ridge {

/// As many as help on this rank's share of the host's cores.
int io_thread_count();

/// Calls `body(thread, i)` for every i below `n`, in ascending order of their starts, on up to `threads`
/// threads, numbered from 0. The first exception keeps the rest from starting and is rethrown.
void run_on_io_threads(int threads, std::int64_t n,
                       const std::function<void(int thread, std::int64_t i)>& body);

}  // namespace ridge
