// Matrices of bytes as the copy engine sees them: what cp.async.bulk.tensor is told.
#pragma once

#include <cuda.h>

#include <cstdint>

namespace ridge::kernels::device {

inline constexpr int kByteBox = 128;  // bytes of a row in a box

/// Whether the driver makes them: one of CUDA 12 or later does, the emulated GPU of the tests does not.
bool has_tensor_maps();

/// Of rows of `row_bytes`, both pointer and size in whole 16: boxes of kByteBox of `box_rows` rows, in shared
/// memory row by row, the 16 bytes number c of row r at place c ^ r % 8, from a whole 1024 on. Zeros beyond
/// the matrix.
CUtensorMap byte_rows_map(const std::uint8_t* data, std::int64_t rows, std::int64_t row_bytes, int box_rows);

}  // namespace ridge::kernels::device
