// What the sources of MPI's communicator share. MPI's objects are its Fortran handles, which are integers, so
// that its header stays out of this one.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <source_location>

#include "core/base/dtype.h"
#include "parallel/communicator.h"

namespace ridge::parallel {

inline constexpr std::size_t kMaxCount = std::size_t{1}
                                         << 28;               // elements of one MPI call; its counts are ints
inline constexpr auto kPoll = std::chrono::microseconds(50);  // who waits leaves the core to others

/// Throws an Error that names the call, unless `code` is a success.
void check_mpi(int code, const char* call, std::source_location where = std::source_location::current());

/// A handle of the MPI_Datatype; that of 16-bit floats is an integer's.
int mpi_type_handle(DType dtype);

/// Calls `body(data, count)` for pieces that MPI can count.
template <class F>
void for_pieces(const AnySpan& values, F&& body) {
  for (std::size_t begin = 0; begin < values.count; begin += kMaxCount) {
    const int count = static_cast<int>(std::min(kMaxCount, values.count - begin));
    body(static_cast<char*>(values.data) + begin * size_of(values.dtype), count);
  }
}

}  // namespace ridge::parallel
