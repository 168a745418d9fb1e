#include "core/text/byte_alphabet.h"

#include <array>

#include "core/text/utf8.h"

namespace ridge {
namespace {

constexpr std::size_t kSymbols = 0x144;

struct Alphabet {
  std::array<char32_t, 256> symbol{};
  std::array<int, kSymbols> byte{};
};

constexpr Alphabet make_alphabet() {
  Alphabet out;
  out.byte.fill(-1);
  char32_t next = 0x100;
  for (char32_t b = 0; b < 256; ++b) {
    const bool printable = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
    out.symbol[b] = printable ? b : next++;
    out.byte[out.symbol[b]] = static_cast<int>(b);
  }
  return out;
}

constexpr Alphabet kAlphabet = make_alphabet();
static_assert(kAlphabet.symbol[' '] == 0x120 && kAlphabet.symbol[173] == 0x143);

}  // namespace

char32_t byte_symbol(unsigned char byte) { return kAlphabet.symbol[byte]; }

int symbol_byte(char32_t symbol) { return symbol < kSymbols ? kAlphabet.byte[symbol] : -1; }

std::string map_bytes(std::string_view text) {
  const bool escaped = utf8::find_escape(text) != std::string_view::npos;
  const std::string raw = escaped ? utf8::unescape(text) : std::string();
  std::string out;
  out.reserve(text.size() * 2);
  for (const char c : escaped ? std::string_view(raw) : text) {
    utf8::append(out, byte_symbol(static_cast<unsigned char>(c)));
  }
  return out;
}

}  // namespace ridge
