#include "core/text/utf8.h"

#include <utf8proc.h>

#include <cstring>

namespace ridge::utf8 {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

enum class Form { kValid, kBroken, kCut };

// One sequence: well formed, ill formed (its maximal part), or cut short by the end of the bytes.
struct Sequence {
  std::size_t bytes;
  Form form;
};

struct Lead {
  std::size_t bytes;        // of the whole sequence; 0: not a lead byte
  unsigned char low, high;  // allowed second byte
};

Lead lead_of(unsigned char c) {
  if (c < 0x80) return {1, 0, 0};
  if (c < 0xC2) return {0, 0, 0};
  if (c < 0xE0) return {2, 0x80, 0xBF};
  if (c == 0xE0) return {3, 0xA0, 0xBF};
  if (c == 0xED) return {3, 0x80, 0x9F};
  if (c < 0xF0) return {3, 0x80, 0xBF};
  if (c == 0xF0) return {4, 0x90, 0xBF};
  if (c < 0xF4) return {4, 0x80, 0xBF};
  if (c == 0xF4) return {4, 0x80, 0x8F};
  return {0, 0, 0};
}

Sequence sequence_at(std::string_view text, std::size_t at) {
  const Lead lead = lead_of(static_cast<unsigned char>(text[at]));
  if (lead.bytes == 0) return {1, Form::kBroken};
  for (std::size_t i = 1; i < lead.bytes; ++i) {
    if (at + i >= text.size()) return {i, Form::kCut};
    const auto c = static_cast<unsigned char>(text[at + i]);
    const bool good = i == 1 ? c >= lead.low && c <= lead.high : (c & 0xC0) == 0x80;
    if (!good) return {i, Form::kBroken};
  }
  return {lead.bytes, Form::kValid};
}

// Length of the ASCII run at `at`, eight bytes at a time.
std::size_t ascii_run(std::string_view text, std::size_t at) {
  const std::size_t begin = at;
  for (std::uint64_t word; at + 8 <= text.size(); at += 8) {
    std::memcpy(&word, text.data() + at, 8);
    if (word & 0x8080808080808080ull) break;
  }
  while (at < text.size() && static_cast<unsigned char>(text[at]) < 0x80) ++at;
  return at - begin;
}

// Copies well-formed parts and hands every ill-formed one to `repair(out, part)`.
template <class Repair>
std::string rewrite_invalid(std::string_view bytes, const Repair& repair) {
  std::string out;
  out.reserve(bytes.size() + bytes.size() / 8);
  for (std::size_t at = 0; at < bytes.size();) {
    if (const std::size_t run = ascii_run(bytes, at)) {
      out.append(bytes, at, run);
      at += run;
      continue;
    }
    const Sequence sequence = sequence_at(bytes, at);
    const std::string_view part = bytes.substr(at, sequence.bytes);
    if (sequence.form == Form::kValid) {
      out.append(part);
    } else {
      repair(out, part);
    }
    at += sequence.bytes;
  }
  return out;
}

// Letters in circles and squares are symbols (So) with the property Alphabetic.
bool is_enclosed_letter(char32_t c) {
  return (c >= 0x24B6 && c <= 0x24E9) || (c >= 0x1F130 && c <= 0x1F149) || (c >= 0x1F150 && c <= 0x1F169) ||
         (c >= 0x1F170 && c <= 0x1F189);
}

utf8proc_category_t category(char32_t c) { return utf8proc_category(static_cast<utf8proc_int32_t>(c)); }

}  // namespace

CodePoint decode_last(std::string_view text) {
  std::size_t at = text.size() - 1;
  while (at > 0 && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) --at;
  return decode(text.data() + at);
}

void append(std::string& out, char32_t c) {
  const auto put = [&out](char32_t byte) { out.push_back(static_cast<char>(byte)); };
  if (c < 0x80) return put(c);
  if (c < 0x800) {
    put(0xC0 | c >> 6);
  } else {
    if (c < 0x10000) {
      put(0xE0 | c >> 12);
    } else {
      put(0xF0 | c >> 18);
      put(0x80 | (c >> 12 & 0x3F));
    }
    put(0x80 | (c >> 6 & 0x3F));
  }
  put(0x80 | (c & 0x3F));
}

bool is_one_code_point(std::string_view text) {
  if (text.empty()) return false;
  const Sequence sequence = sequence_at(text, 0);
  return sequence.form == Form::kValid && sequence.bytes == text.size();
}

bool is_valid(std::string_view text) {
  for (std::size_t at = 0; at < text.size();) {
    at += ascii_run(text, at);
    if (at == text.size()) break;
    const Sequence sequence = sequence_at(text, at);
    if (sequence.form != Form::kValid) return false;
    at += sequence.bytes;
  }
  return true;
}

std::string escape_invalid(std::string_view bytes) {
  return rewrite_invalid(bytes, [](std::string& out, std::string_view part) {
    for (const char c : part) append(out, 0xDC00u + static_cast<unsigned char>(c));
  });
}

std::string unescape(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t escape = std::min(find_escape(text, at), text.size());
    out.append(text, at, escape - at);
    at = escape;
    if (at == text.size()) break;
    out.push_back(static_cast<char>(decode(text.data() + at).value - 0xDC00));
    at += kEscapeBytes;
  }
  return out;
}

std::size_t find_escape(std::string_view text, std::size_t from) {
  while ((from = text.find('\xED', from)) != std::string_view::npos) {
    if (from + 2 < text.size() && is_escape(decode(text.data() + from).value)) return from;
    ++from;
  }
  return std::string_view::npos;
}

std::string replace_invalid(std::string_view bytes) {
  return rewrite_invalid(bytes, [](std::string& out, std::string_view) { out.append(kReplacement); });
}

std::size_t incomplete_tail(std::string_view bytes) {
  for (std::size_t back = 1; back <= 3 && back <= bytes.size(); ++back) {
    const std::size_t at = bytes.size() - back;
    if ((static_cast<unsigned char>(bytes[at]) & 0xC0) == 0x80) continue;
    const Sequence sequence = sequence_at(bytes, at);
    return sequence.form == Form::kCut ? back : 0;
  }
  return 0;
}

bool is_space(char32_t c) {
  if (c < 0x80) return c == ' ' || (c >= '\t' && c <= '\r');
  return c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 ||
         c == 0x2029 || c == 0x202F || c == 0x205F || c == 0x3000;
}

bool is_word(char32_t c) {
  switch (category(c)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
      return true;
    default:
      return c == 0x200C || c == 0x200D || is_enclosed_letter(c);
  }
}

bool is_numeric(char32_t c) {
  const utf8proc_category_t kind = category(c);
  return kind == UTF8PROC_CATEGORY_ND || kind == UTF8PROC_CATEGORY_NL || kind == UTF8PROC_CATEGORY_NO;
}

bool is_punctuation(char32_t c) {
  if (c < 0x80)
    return (c > 0x20 && c < '0') || (c > '9' && c < 'A') || (c > 'Z' && c < 'a') || (c > 'z' && c < 0x7F);
  const utf8proc_category_t kind = category(c);
  return kind >= UTF8PROC_CATEGORY_PC && kind <= UTF8PROC_CATEGORY_PO;
}

}  // namespace ridge::utf8
