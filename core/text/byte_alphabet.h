// The byte-level alphabet of GPT-2: one printable character a byte.
#pragma once

#include <string>
#include <string_view>

namespace ridge {

/// The character that stands for a byte, U+0021 .. U+0143.
char32_t byte_symbol(unsigned char byte);

/// The byte that a character stands for, or -1.
int symbol_byte(char32_t symbol);

/// Each byte of the text as its symbol; an escaped byte (utf8.h) gives the one symbol of that byte.
std::string map_bytes(std::string_view text);

}  // namespace ridge
