// The element types of safetensors: names, widths, and which are ours.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "core/base/dtype.h"

namespace ridge {

/// A safetensors element type. `order` is its place in the reference's list, which drives the writer's sort.
struct SafetensorsType {
  std::string_view name;
  int bits;
  int order;
  std::optional<DType> dtype;
};

/// The type of that name, or null.
const SafetensorsType* find_safetensors_type(std::string_view name);
const SafetensorsType& safetensors_type(DType dtype);

/// Bytes of a tensor; none when the count overflows 64 bits or is not a whole number of bytes.
std::optional<std::uint64_t> safetensors_bytes(const SafetensorsType& type,
                                               const std::vector<std::int64_t>& shape);

}  // namespace ridge
