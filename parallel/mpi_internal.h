// What the sources of MPI's communicator share. It includes MPI's header: for .cpp files.
#pragma once

#include <mpi.h>

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

MPI_Datatype mpi_type(DType dtype);

/// Calls `body(data, count)` for pieces that MPI can count.
template <class F>
void for_pieces(const AnySpan& values, F&& body) {
  for (std::size_t begin = 0; begin < values.count; begin += kMaxCount) {
    const int count = static_cast<int>(std::min(kMaxCount, values.count - begin));
    body(static_cast<char*>(values.data) + begin * size_of(values.dtype), count);
  }
}

/// Reductions by dtype: MPI's own, and ours of 16-bit floats. It ends before MPI does.
class MpiOperations {
 public:
  MpiOperations();
  ~MpiOperations();
  MpiOperations(const MpiOperations&) = delete;
  MpiOperations& operator=(const MpiOperations&) = delete;

  MPI_Op of(DType dtype, Reduce op) const;

 private:
  MPI_Op bf16_sum_ = MPI_OP_NULL, bf16_max_ = MPI_OP_NULL;
  MPI_Op f16_sum_ = MPI_OP_NULL, f16_max_ = MPI_OP_NULL;
};

}  // namespace ridge::parallel
