// Threads inside one rank: a pool that cuts index ranges into chunks.
#pragma once

#include <cstdint>

namespace ridge {

/// Threads that parallel_for may use in this process, this one included. Default: the cores that the process
/// may run on.
int thread_count();
void set_thread_count(int count);

namespace detail {
using RangeFn = void (*)(const void* body, std::int64_t begin, std::int64_t end);
void run_chunks(std::int64_t n, std::int64_t grain, RangeFn fn, const void* body);
}  // namespace detail

/// Calls `body(begin, end)` over chunks of at most about `grain` indices that cover [0, n), on several
/// threads. Chunk borders depend on n and grain alone, so results do not depend on the number of threads.
/// Nested calls, and calls while another thread holds the pool, run serially over the same chunks.
/// The first exception of a chunk is rethrown after all chunks have ended.
template <class Body>
void parallel_for(std::int64_t n, std::int64_t grain, const Body& body) {
  if (n <= 0) return;
  detail::run_chunks(
      n, grain < 1 ? 1 : grain,
      [](const void* b, std::int64_t begin, std::int64_t end) { (*static_cast<const Body*>(b))(begin, end); },
      &body);
}

}  // namespace ridge
