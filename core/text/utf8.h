// UTF-8: decoding, repair, an escape that carries any bytes through text code, and character classes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace ridge::utf8 {

struct CodePoint {
  char32_t value;
  std::uint32_t bytes;
};

/// The code point at `p`, which must begin a whole sequence of well-formed (or escaped, see below) text.
inline CodePoint decode(const char* p) {
  const auto byte = [p](int i) { return static_cast<std::uint32_t>(static_cast<unsigned char>(p[i])); };
  if (byte(0) < 0x80) return {byte(0), 1};
  if (byte(0) < 0xE0) return {(byte(0) & 0x1F) << 6 | (byte(1) & 0x3F), 2};
  if (byte(0) < 0xF0) return {(byte(0) & 0x0F) << 12 | (byte(1) & 0x3F) << 6 | (byte(2) & 0x3F), 3};
  return {(byte(0) & 0x07) << 18 | (byte(1) & 0x3F) << 12 | (byte(2) & 0x3F) << 6 | (byte(3) & 0x3F), 4};
}

/// The last code point of non-empty well-formed text.
CodePoint decode_last(std::string_view text);

/// Appends the 1 to 4 bytes of a code point.
void append(std::string& out, char32_t value);

/// True where the text is one code point, whole.
bool is_one_code_point(std::string_view text);

/// True where every byte belongs to a well-formed sequence (Unicode 3.9, table 3-7: no surrogates, shortest
/// form).
bool is_valid(std::string_view text);

/// Writes each byte outside a well-formed sequence as the three bytes of U+DC00 + byte. Valid text holds no
/// surrogates, so `unescape` gives back exactly the bytes that came in.
std::string escape_invalid(std::string_view bytes);
std::string unescape(std::string_view text);

/// Offset of the first escaped byte at or after `from`, or npos.
std::size_t find_escape(std::string_view text, std::size_t from = 0);
inline constexpr std::size_t kEscapeBytes = 3;
inline bool is_escape(char32_t value) { return value >= 0xDC80 && value <= 0xDCFF; }

/// Replaces each maximal ill-formed part with U+FFFD, as the Unicode standard (3.9, "best practice") says.
std::string replace_invalid(std::string_view bytes);

/// Number of bytes at the end that begin a sequence which more bytes could complete (0 to 3).
std::size_t incomplete_tail(std::string_view bytes);

bool is_space(char32_t value);        // White_Space
bool is_word(char32_t value);         // \w of UTS 18: Alphabetic, M, Nd, Pc, Join_Control
bool is_numeric(char32_t value);      // N
bool is_punctuation(char32_t value);  // P, and ASCII punctuation

}  // namespace ridge::utf8
