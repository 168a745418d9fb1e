// How deep a JSON text nests: libraries that walk values by recursion run out of stack on one that is too
// deep.
#pragma once

#include <string_view>

namespace ridge {

/// UserError when arrays and objects of a JSON text nest more than 100 levels deep; `source` stands for the
/// file. The text need not be valid: a parser still has to say so.
void check_json_depth(std::string_view json, std::string_view source);

}  // namespace ridge
