// Words of PTX.
#pragma once

#include <bit>
#include <cctype>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>

#include "tests/emulated_gpu/program.h"

namespace ridge::emulated {

class Scanner {
 public:
  explicit Scanner(std::string_view text, std::size_t at = 0) : text_(text), at_(at) {}

  std::string_view text() const { return text_; }
  std::size_t position() const { return at_; }
  bool at_end() { return next() == 0; }
  char next() {
    skip_blanks();
    return at_ < text_.size() ? text_[at_] : '\0';
  }
  bool take(char c) {
    if (next() != c) return false;
    ++at_;
    return true;
  }
  void expect(char c) {
    if (!take(c)) fail(std::string("'") + c + "' is expected");
  }
  /// A name, an opcode with its parts, or a directive; of anything else one character.
  std::string word() {
    next();
    const std::size_t begin = at_;
    while (at_ < text_.size() && in_word(text_[at_])) at_ += text_[at_] == ':' ? 2 : 1;
    if (at_ == begin && at_ < text_.size()) ++at_;
    return std::string(text_.substr(begin, at_ - begin));
  }
  std::int64_t integer() {
    if (next() == '+') ++at_;
    return static_cast<std::int64_t>(number());
  }
  /// As bits: -1, 42, 0x2A, 42U, 1.0, 0f3F800000, 0d3FF0000000000000.
  std::uint64_t number() {
    const bool negative = take('-');
    std::string digits = word();
    if (digits.starts_with("0f") || digits.starts_with("0F") || digits.starts_with("0d") ||
        digits.starts_with("0D"))
      return std::stoull(digits.substr(2), nullptr, 16);
    if (digits.find('.') != std::string::npos) return std::bit_cast<std::uint64_t>(std::stod(digits));
    if (digits.ends_with('U')) digits.pop_back();
    std::size_t used = 0;
    std::uint64_t value = 0;
    try {
      value = std::stoull(digits, &used, 0);
    } catch (const std::exception&) {
    }
    if (used == 0 || used != digits.size()) fail("'" + digits + "' is no number");
    return negative ? -value : value;
  }
  void skip_line() {
    while (at_ < text_.size() && text_[at_] != '\n') ++at_;
  }
  void skip_past(char c) {
    while (at_ < text_.size() && text_[at_] != c) ++at_;
    ++at_;
  }
  /// Past the braces that open next; of a declaration without a body past its semicolon.
  void skip_body() {
    while (next() != '{') {
      if (at_ >= text_.size() || next() == ';') return skip_past(';');
      word();
    }
    int depth = 0;
    do {
      if (next() == '{') ++depth;
      if (next() == '}') --depth;
      ++at_;
    } while (depth > 0 && at_ < text_.size());
  }
  void begin_statement() {
    next();
    statement_ = at_;
  }
  std::string statement() const { return std::string(text_.substr(statement_, at_ - statement_)); }

  [[noreturn]] void fail(const std::string& what) const {
    throw std::runtime_error("PTX: " + what + " at: " + std::string(text_.substr(at_, 80)));
  }

 private:
  bool in_word(char c) const {
    if (c == ':') return text_.substr(at_, 2) == "::";
    return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_' || c == '$' || c == '%' || c == '.';
  }
  void skip_blanks() {
    while (at_ < text_.size()) {
      if (std::isspace(static_cast<unsigned char>(text_[at_])) != 0) {
        ++at_;
      } else if (text_.substr(at_, 2) == "//") {
        skip_line();
      } else if (text_.substr(at_, 2) == "/*") {
        const std::size_t end = text_.find("*/", at_ + 2);
        at_ = end == std::string_view::npos ? text_.size() : end + 2;
      } else {
        return;
      }
    }
  }

  std::string_view text_;
  std::size_t at_, statement_ = 0;
};

}  // namespace ridge::emulated
