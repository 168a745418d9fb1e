// Which weights adapters were trained on.
#pragma once

#include <string>

namespace ridge {

/// 16 hexadecimal digits of a model's folder: XXH3 of config.json and, file by file in the order of their
/// names, of the name, the bytes, the header and samples of every *.safetensors. Reads some hundred kilobytes
/// a file: another set of weights is told apart, the change of a few numbers may not be.
std::string base_fingerprint(const std::string& folder);

}  // namespace ridge
