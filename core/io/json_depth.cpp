#include "core/io/json_depth.h"

#include <algorithm>

#include "core/base/error.h"

namespace ridge {
namespace {

constexpr int kMaxDepth = 100;

// The end of the string whose opening quote is at `at`.
std::size_t end_of_string(std::string_view json, std::size_t at) {
  for (++at; at < json.size() && json[at] != '"'; ++at) {
    if (json[at] == '\\') ++at;
  }
  return at;
}

}  // namespace

void check_json_depth(std::string_view json, std::string_view source) {
  int depth = 0;
  for (std::size_t at = 0; at < json.size(); ++at) {
    const char c = json[at];
    if (c == '"') at = end_of_string(json, at);
    if (c == '[' || c == '{') ++depth;
    if (c == ']' || c == '}') depth = std::max(0, depth - 1);
    require(depth <= kMaxDepth, "{}: not read: its JSON nests deeper than {} levels at byte {}", source,
            kMaxDepth, at);
  }
}

}  // namespace ridge
