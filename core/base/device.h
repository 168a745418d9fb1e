// Where data lives and work runs.
#pragma once

#include <cstdint>
#include <string_view>

namespace ridge {

/// `meta` holds shapes only: no memory, no arithmetic, but all of the accounting.
enum class Device : std::uint8_t { cpu, cuda, meta };

std::string_view name_of(Device device);

/// Resolves `auto|cpu|cuda`; a UserError where CUDA is asked for and this build or machine has none.
Device parse_device(std::string_view name);

}  // namespace ridge
