// Oniguruma (Ruby flavour) to PCRE2: \s, \w, \b get Oniguruma's sets; what differs and cannot be said is
// refused.
#include <optional>

#include "core/base/error.h"
#include "core/text/tokenizer_match.h"

namespace ridge {
namespace {

// White_Space, without U+180E that PCRE2 adds. The second form ends in a property: a following '-' stays
// literal.
constexpr std::string_view kSpace =
    R"(\t-\r\x{20}\x{85}\x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000})";
constexpr std::string_view kSpaceInClass =
    R"(\t-\r\x{20}\x{85}\x{A0}\x{1680}\x{2000}-\x{200A}\x{202F}\x{205F}\x{3000}\p{Zl}\p{Zp})";
// Outside a class, Oniguruma counts the superscripts and fractions of Latin-1 as word characters.
constexpr std::string_view kWord = R"(\x{B2}\x{B3}\x{B9}\x{BC}-\x{BE}\p{Alphabetic}\p{M}\p{Nd}\p{Pc})";
constexpr std::string_view kWordInClass = R"(\p{Alphabetic}\p{M}\p{Nd}\p{Pc})";

constexpr std::string_view kDigits = "0123456789";
constexpr std::string_view kHexDigits = "0123456789abcdefABCDEF";

bool is_ascii_alnum(char c) {
  return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
}

class Rewriter {
 public:
  Rewriter(std::string_view pattern, std::string_view where) : pattern_(pattern), where_(where) {}

  std::string run() {
    while (at_ < pattern_.size()) {
      switch (pattern_[at_]) {
        case '\\':
          escape();
          break;
        case '[':
          char_class();
          break;
        case '(':
          group();
          break;
        case '{':
          interval();
          break;
        default:
          copy(1);
      }
    }
    return std::move(out_);
  }

 private:
  [[noreturn]] void refuse(std::string_view what) const {
    fail_user("{}: {} at byte {} of the pattern {} is not supported", where_, what, at_, in_quotes(pattern_));
  }

  char peek(std::size_t ahead) const { return at_ + ahead < pattern_.size() ? pattern_[at_ + ahead] : '\0'; }
  bool next_is(std::string_view text) const { return pattern_.substr(at_).starts_with(text); }

  void copy(std::size_t bytes) {
    out_ += pattern_.substr(at_, bytes);
    at_ += bytes;
  }

  void replace(std::size_t bytes, std::string_view with) {
    out_ += with;
    at_ += bytes;
  }

  // At a backslash outside a class.
  void escape() {
    const std::string word(kWord), space(kSpace);
    switch (peek(1)) {
      case 's':
        return replace(2, "[" + space + "]");
      case 'S':
        return replace(2, "[^" + space + "]");
      case 'w':
        return replace(2, "[" + word + "]");
      case 'W':
        return replace(2, "[^" + word + "]");
      case 'b':
        return replace(2, "(?:(?<=[" + word + "])(?![" + word + "])|(?<![" + word + "])(?=[" + word + "]))");
      case 'B':
        return replace(2, "(?:(?<=[" + word + "])(?=[" + word + "])|(?<![" + word + "])(?![" + word + "]))");
      case 'A':
      case 'z':
      case 'Z':
      case 'R':
      case 'X':
      case '1':
      case '2':
      case '3':
      case '4':
      case '5':
      case '6':
      case '7':
      case '8':
      case '9':
        return copy(2);
      default:
        return common_escape();
    }
  }

  // Escapes that mean the same inside and outside a class.
  void common_escape() {
    const char c = peek(1);
    if (c == 'p' || c == 'P') return property();
    if (c == 'x') return hex();
    if (c == 'u') return code_unit();
    if (std::string_view("dDnrtfae").find(c) != std::string_view::npos && c != '\0') return copy(2);
    if (c == '\0' || is_ascii_alnum(c) || static_cast<unsigned char>(c) >= 0x80) refuse("this escape");
    copy(2);
  }

  void property() {
    if (peek(2) != '{') return copy(3 <= pattern_.size() - at_ ? 3 : 2);
    const std::size_t end = pattern_.find('}', at_);
    if (end == std::string_view::npos) refuse("a property without its closing brace");
    copy(end + 1 - at_);
  }

  // \x{H...}, or \xHH below 0x80: above, Oniguruma means a byte, not a character.
  void hex() {
    if (peek(2) == '{') {
      const std::size_t end = pattern_.find_first_not_of(kHexDigits, at_ + 3);
      if (end == std::string_view::npos || pattern_[end] != '}') refuse("this escape");
      return copy(end + 1 - at_);
    }
    const bool ascii = peek(2) >= '0' && peek(2) <= '7' && kHexDigits.find(peek(3)) != std::string_view::npos;
    if (!ascii || peek(3) == '\0') refuse("this escape");
    copy(4);
  }

  // \uHHHH
  void code_unit() {
    const std::string_view digits = pattern_.substr(at_ + 2).substr(0, 4);
    if (digits.size() != 4 || digits.find_first_not_of(kHexDigits) != std::string_view::npos)
      refuse("this escape");
    replace(6, "\\x{" + std::string(digits) + "}");
  }

  void char_class() {
    copy(1);
    if (peek(0) == '^') copy(1);
    if (peek(0) == ']') replace(1, "\\]");
    for (bool after_hyphen = false; peek(0) != ']';) {
      if (at_ >= pattern_.size()) refuse("a class without its closing bracket");
      if (peek(0) == '[') refuse("a class within a class");
      if (next_is("&&")) refuse("an intersection of classes");
      const bool hyphen = peek(0) == '-';
      if (peek(0) == '\\') {
        class_escape(after_hyphen);
      } else {
        copy(1);
      }
      after_hyphen = hyphen;
    }
    copy(1);
  }

  void class_escape(bool after_hyphen) {
    const char c = peek(1);
    if (c != 's' && c != 'w' && c != 'S') return common_escape();
    if (after_hyphen) refuse("a hyphen before a class escape");
    if (c == 'S') return copy(2);
    replace(2, c == 's' ? kSpaceInClass : kWordInClass);
  }

  void group() {
    if (next_is("(*")) refuse("a verb");
    if (!next_is("(?")) return copy(1);
    for (const std::string_view opening : {"(?:", "(?=", "(?!", "(?<=", "(?<!", "(?>", "(?i:", "(?-i:"}) {
      if (next_is(opening)) return copy(opening.size());
    }
    // Oniguruma ends such an option at the next '|' of its group, so only a leading one means the same in
    // both.
    if (at_ == 0 && next_is("(?i)")) return copy(4);
    refuse("this group");
  }

  // {n}, {n,}, {n,m}, or a literal brace.
  void interval() {
    const std::size_t first = pattern_.find_first_not_of(kDigits, at_ + 1);
    if (first == std::string_view::npos || first == at_ + 1) {
      if (peek(1) == ',') refuse("an interval without a lower bound");
      return copy(1);
    }
    const bool exact = pattern_[first] == '}';
    if (!exact && pattern_[first] != ',') return copy(1);
    const std::size_t end = exact ? first : pattern_.find_first_not_of(kDigits, first + 1);
    if (end == std::string_view::npos || pattern_[end] != '}') return copy(1);
    copy(end + 1 - at_);
    if (peek(0) == '+') refuse("a '+' after an interval");
    if (exact && peek(0) == '?') refuse("a '?' after an exact interval");
  }

  std::string_view pattern_, where_;
  std::size_t at_ = 0;
  std::string out_;
};

}  // namespace

std::string pcre2_from_oniguruma(std::string_view pattern, std::string_view where) {
  return Rewriter(pattern, where).run();
}

}  // namespace ridge
