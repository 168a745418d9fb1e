// Names from untrusted files, made fit for one line of an error message.
#pragma once

#include <string>
#include <string_view>

namespace ridge {

/// `text` in single quotes: control bytes as \xNN, cut after 120 bytes.
std::string shown(std::string_view text);

/// Whether `text` is well-formed UTF-8 (no overlong forms, no surrogates).
bool is_utf8(std::string_view text);

}  // namespace ridge
