// Patterns that cut text: literals, regular expressions (PCRE2), classes of characters.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "core/text/tokenizer_json.h"

namespace ridge {

/// Receives consecutive ranges that cover the text: [begin, end) and whether the pattern matched it.
using MatchSink = std::function<void(std::size_t begin, std::size_t end, bool is_match)>;

/// A pattern; const methods may run on several threads at once. Escaped bytes (utf8.h) never match.
class Matcher {
 public:
  virtual ~Matcher() = default;
  virtual void scan(std::string_view text, const MatchSink& sink) const = 0;
};

std::unique_ptr<Matcher> match_literal(std::string literal);
/// A regular expression in Oniguruma's syntax, as tokenizer.json holds. `where` names file and field for
/// errors.
std::unique_ptr<Matcher> match_regex(std::string_view pattern, std::string where);
/// Each character of the class is one match.
std::unique_ptr<Matcher> match_class(bool (*contains)(char32_t));
/// {"String": s} or {"Regex": s}.
std::unique_ptr<Matcher> match_pattern(const JsonNode& node);

/// Rewrites Oniguruma's syntax (Ruby flavour) to PCRE2's with the same meaning. Throws a UserError that
/// starts with `where` for what PCRE2 would read differently.
std::string pcre2_from_oniguruma(std::string_view pattern, std::string_view where);

}  // namespace ridge
