// What nvcc leaves in a program for each translation unit: a fat binary, with machine code and PTX.
#pragma once

#include <string>

namespace ridge::emulated {

/// The PTX in an image: a registered wrapper, a fat binary or PTX itself. Of several, the newest that sm_90
/// can run. Throws std::runtime_error where there is none.
std::string ptx_of(const void* image);

}  // namespace ridge::emulated
