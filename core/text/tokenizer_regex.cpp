// PCRE2 behind Matcher: Unicode properties, just-in-time code, a limit on backtracking.
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>

#include "core/base/error.h"
#include "core/text/tokenizer_match.h"
#include "core/text/utf8.h"

namespace ridge {
namespace {

constexpr std::size_t kMostPatternBytes = 16384;
constexpr std::uint32_t kMatchLimit = 1'000'000;  // backtracking steps of one match, beside 4 a byte of text
constexpr std::uint32_t kHeapLimitKiB = 64 * 1024;  // of one match without just-in-time code

struct Free {
  void operator()(pcre2_code* p) const { pcre2_code_free(p); }
  void operator()(pcre2_match_data* p) const { pcre2_match_data_free(p); }
  void operator()(pcre2_match_context* p) const { pcre2_match_context_free(p); }
  void operator()(pcre2_compile_context* p) const { pcre2_compile_context_free(p); }
};
template <class T>
using Owned = std::unique_ptr<T, Free>;

std::string error_text(int code) {
  PCRE2_UCHAR buffer[256] = {};
  pcre2_get_error_message(code, buffer, sizeof buffer);
  return reinterpret_cast<const char*>(buffer);
}

class RegexMatcher final : public Matcher {
 public:
  RegexMatcher(std::string_view pattern, std::string where) : where_(std::move(where)) {
    require(pattern.size() <= kMostPatternBytes, "{}: the pattern has {} bytes; at most {} are allowed",
            where_, pattern.size(), kMostPatternBytes);
    const std::string source = pcre2_from_oniguruma(pattern, where_);
    const Owned<pcre2_compile_context> context(pcre2_compile_context_create(nullptr));
    pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
    constexpr std::uint32_t kOptions = PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C;
    int code = 0;
    PCRE2_SIZE offset = 0;
    code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(source.data()), source.size(), kOptions, &code,
                              &offset, context.get()));
    require(code_ != nullptr, "{}: {} is not a regular expression that can be used: {} (at byte {})", where_,
            in_quotes(pattern), error_text(code), offset);
    pcre2_jit_compile(code_.get(), PCRE2_JIT_COMPLETE);
  }

  void scan(std::string_view text, const MatchSink& sink) const override {
    std::size_t at = 0;
    for (std::size_t escape; (escape = utf8::find_escape(text, at)) != std::string_view::npos;) {
      if (escape > at) scan_valid(text.substr(at, escape - at), at, sink);
      std::size_t end = escape;
      while (end < text.size() && utf8::is_escape(utf8::decode(text.data() + end).value))
        end += utf8::kEscapeBytes;
      sink(escape, end, false);
      at = end;
    }
    if (at < text.size()) scan_valid(text.substr(at), at, sink);
  }

 private:
  // `base`: offset of `text` in what the sink counts from.
  void scan_valid(std::string_view text, std::size_t base, const MatchSink& sink) const {
    const Owned<pcre2_match_data> data(pcre2_match_data_create(1, nullptr));
    const Owned<pcre2_match_context> context(pcre2_match_context_create(nullptr));
    check(data && context, "out of memory for a regular expression");
    pcre2_set_match_limit(context.get(), match_limit(text.size()));
    pcre2_set_heap_limit(context.get(), kHeapLimitKiB);
    const PCRE2_SIZE* range = pcre2_get_ovector_pointer(data.get());
    std::size_t done = 0;                     // end of what the sink has
    std::size_t matched = std::string::npos;  // end of the last match
    for (std::size_t from = 0; from <= text.size();) {
      if (!find(text, from, data.get(), context.get())) break;
      const std::size_t begin = range[0], end = range[1];
      check(begin >= done && end >= begin, "a match goes backwards");
      if (begin == end && end == matched) {  // an empty match right after a match does not count
        if (from == text.size()) break;
        from += utf8::decode(text.data() + from).bytes;
        continue;
      }
      if (begin > done) sink(base + done, base + begin, false);
      sink(base + begin, base + end, true);
      done = from = matched = end;
    }
    if (done < text.size()) sink(base + done, base + text.size(), false);
  }

  bool find(std::string_view text, std::size_t from, pcre2_match_data* data,
            pcre2_match_context* context) const {
    const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
    int found = pcre2_match(code_.get(), subject, text.size(), from, PCRE2_NO_UTF_CHECK, data, context);
    if (found == PCRE2_ERROR_JIT_STACKLIMIT) {
      found = pcre2_match(code_.get(), subject, text.size(), from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, data,
                          context);
    }
    if (found == PCRE2_ERROR_NOMATCH) return false;
    require(found >= 0, "{}: matching gave up at byte {} of {}: {}; use a pattern that backtracks less",
            where_, from, text.size(), error_text(found));
    return true;
  }

  static std::uint32_t match_limit(std::size_t bytes) {
    return static_cast<std::uint32_t>(std::min<std::size_t>(kMatchLimit + 4 * bytes, 0xFFFFFFFFu));
  }

  std::string where_;
  Owned<pcre2_code> code_;
};

}  // namespace

std::unique_ptr<Matcher> match_regex(std::string_view pattern, std::string where) {
  return std::make_unique<RegexMatcher>(pattern, std::move(where));
}

}  // namespace ridge
