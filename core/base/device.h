// Where data lives and work runs.
#pragma once

#include <cstdint>
#include <string_view>

namespace ridge {

/// `meta` holds shapes only: no memory, no arithmetic, but all of the accounting.
enum class Device : std::uint8_t { cpu, cuda, meta };

std::string_view name_of(Device device);

/// Resolves `auto|cpu|cuda`: auto is cuda where there is a GPU. A UserError where CUDA is asked for and this
/// build has none; whether the GPU will do is for cuda::select_device to say.
Device parse_device(std::string_view name);

}  // namespace ridge
