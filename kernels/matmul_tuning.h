// Choosing cuBLASLt's algorithms by measurement. Untuned, every shape takes the library's first choice, so
// that results do not depend on timings; tuned choices are a file, the same for every run that reads it.
#pragma once

#include <cstdint>
#include <string>

namespace ridge::kernels {

/// While on, the first product of each shape runs the library's candidates several times on the operands at
/// hand (their output is spoilt) and keeps the fastest.
void set_matmul_tuning(bool on);

/// The choices as text, one line a shape, and back. Choices of another GPU model or version of cuBLAS are
/// left aside; returns how many were taken. A UserError names a line that cannot be read.
std::string matmul_choices();
std::int64_t set_matmul_choices(const std::string& text, const std::string& source);

}  // namespace ridge::kernels
