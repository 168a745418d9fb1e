// Normal forms on utf8proc's tables; its own ordering of marks is quadratic in the length of a run.
#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <vector>

#include "core/base/error.h"
#include "core/text/normalizer.h"
#include "core/text/utf8.h"

namespace ridge {
namespace {

constexpr char32_t kFirstThatNfcChanges = 0x300;  // below, every text is in NFC

bool composes(NormalForm form) { return form == NormalForm::kNfc || form == NormalForm::kNfkc; }

bool is_plain(std::string_view text, NormalForm form) {
  for (std::size_t at = 0; at < text.size();) {
    const auto [value, bytes] = utf8::decode(text.data() + at);
    if (value >= (form == NormalForm::kNfc ? kFirstThatNfcChanges : 0x80)) return false;
    at += bytes;
  }
  return true;
}

int combining_class(utf8proc_int32_t c) { return utf8proc_get_property(c)->combining_class; }

void append_decomposed(std::vector<utf8proc_int32_t>& out, char32_t value, utf8proc_option_t options) {
  std::array<utf8proc_int32_t, 32> buffer{};  // longest decomposition: 18 (U+FDFA)
  int boundary = 0;
  const auto count = utf8proc_decompose_char(static_cast<utf8proc_int32_t>(value), buffer.data(),
                                             buffer.size(), options, &boundary);
  check(count >= 0 && count <= static_cast<utf8proc_ssize_t>(buffer.size()),
        "a character does not decompose");
  out.insert(out.end(), buffer.begin(), buffer.begin() + count);
}

// Canonical ordering: each run of marks (class > 0) is sorted by class, stably.
void order_marks(std::vector<utf8proc_int32_t>& text) {
  const auto is_mark = [](utf8proc_int32_t c) { return combining_class(c) != 0; };
  for (auto begin = text.begin(); (begin = std::find_if(begin, text.end(), is_mark)) != text.end();) {
    const auto end = std::find_if_not(begin, text.end(), is_mark);
    std::stable_sort(begin, end, [](auto a, auto b) { return combining_class(a) < combining_class(b); });
    begin = end;
  }
}

}  // namespace

std::string normal_form(std::string_view text, NormalForm form) {
  if (is_plain(text, form)) return std::string(text);
  int options = UTF8PROC_STABLE | (composes(form) ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE);
  if (form == NormalForm::kNfkc || form == NormalForm::kNfkd) options |= UTF8PROC_COMPAT;
  std::vector<utf8proc_int32_t> codes;
  codes.reserve(text.size());
  for (std::size_t at = 0; at < text.size();) {
    const auto [value, bytes] = utf8::decode(text.data() + at);
    append_decomposed(codes, value, static_cast<utf8proc_option_t>(options));
    at += bytes;
  }
  order_marks(codes);
  auto count = static_cast<utf8proc_ssize_t>(codes.size());
  if (composes(form)) {
    count = utf8proc_normalize_utf32(codes.data(), count, static_cast<utf8proc_option_t>(options));
    check(count >= 0, "composition failed");
  }
  std::string out;
  out.reserve(text.size());
  for (utf8proc_ssize_t i = 0; i < count; ++i)
    utf8::append(out, static_cast<char32_t>(codes[static_cast<std::size_t>(i)]));
  return out;
}

}  // namespace ridge
