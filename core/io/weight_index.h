// model.safetensors.index.json: which shard holds which tensor.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>

namespace ridge {

/// Tensor name to file name, from an untrusted index: no key twice, plain file names only (no folder, no
/// ".."). UserError names `file`.
std::map<std::string, std::string> parse_weight_index(std::string_view json, const std::string& file);

/// The index as Hugging Face writes it: sorted, indented by 2.
std::string format_weight_index(const std::map<std::string, std::string>& weight_map,
                                std::uint64_t total_bytes);

}  // namespace ridge
