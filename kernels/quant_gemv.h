// Few rows times a matrix in a weight format on the CPU: codes become values in registers.
//
// Codes are read in steps of 64 bytes, as 16 words of 32 bits. A step becomes 8 (4 bits) or 4 (8 bits)
// vectors of values, and x is kept in that order.
#pragma once

#include <cstdint>

#include "kernels/formats/format.h"

namespace ridge::kernels {

inline constexpr std::int64_t kQuantGemvRows = 8;  // that one pass over the codes serves
inline constexpr std::int64_t kStepBytes = 64;

/// Whether rows of such a matrix are whole groups and whole bytes, as the kernels need them.
bool has_quant_gemv(const QuantView& w);

/// Rows of x for a format's kernels, each of whole steps: zeros follow the last column.
struct ArrangedRows {
  const float* x = nullptr;     // [M, stride]
  const float* sums = nullptr;  // [M, stride / 8], zero points: of the elements that meet one word
  std::int64_t stride = 0;
};

/// Floats of a row of `ArrangedRows`, and of all that `arrange` fills.
std::int64_t arranged_stride(const QuantView& w);
std::int64_t arranged_size(const QuantView& w, std::int64_t rows);
/// x [M, K] with dense rows, float or bf16, into `to`.
template <class T>
ArrangedRows arrange(const QuantView& w, const T* x, std::int64_t x_stride, std::int64_t rows, float* to);

/// y[m, n - begin] of rows begin .. end - 1 of w and `rows` rows of x, at most kQuantGemvRows.
void quant_gemv_bytes(const QuantView& w, const ArrangedRows& x, std::int64_t rows, std::int64_t begin,
                      std::int64_t end, float* y, std::int64_t y_stride);
void quant_gemv_nibbles(const QuantView& w, const ArrangedRows& x, std::int64_t rows, std::int64_t begin,
                        std::int64_t end, float* y, std::int64_t y_stride);

}  // namespace ridge::kernels
