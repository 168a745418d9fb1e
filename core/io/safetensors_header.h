// The JSON header of a safetensors file, parsed and written; no data behind it is touched.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace ridge {

/// One header item: where a tensor's bytes lie, relative to the start of the data.
struct SafetensorsItem {
  std::string name;
  std::string dtype;
  std::vector<std::int64_t> shape;
  std::uint64_t begin = 0, end = 0;
};

struct SafetensorsHeader {
  std::vector<SafetensorsItem> items;
  std::map<std::string, std::string> metadata;
};

/// Parses strictly: the schema and nothing else, no key twice, at most 64 dims. UserError names `file`.
SafetensorsHeader parse_safetensors_header(std::string_view json, const std::string& file);

/// The header with its 8-byte length, padded with spaces to a multiple of 8.
std::string format_safetensors_header(const SafetensorsHeader& header);

/// A UserError "invalid safetensors file '<file>': <what>".
[[noreturn]] void fail_safetensors(const std::string& file, const std::string& what);

}  // namespace ridge
