#include "core/text/tokenizer_match.h"

#include <nlohmann/json.hpp>

#include "core/text/utf8.h"

namespace ridge {
namespace {

class LiteralMatcher final : public Matcher {
 public:
  explicit LiteralMatcher(std::string literal) : literal_(std::move(literal)) {}

  void scan(std::string_view text, const MatchSink& sink) const override {
    std::size_t done = 0;
    for (std::size_t at; (at = text.find(literal_, done)) != std::string_view::npos;) {
      if (at > done) sink(done, at, false);
      done = at + literal_.size();
      sink(at, done, true);
    }
    if (done < text.size()) sink(done, text.size(), false);
  }

 private:
  std::string literal_;
};

class ClassMatcher final : public Matcher {
 public:
  explicit ClassMatcher(bool (*contains)(char32_t)) : contains_(contains) {}

  void scan(std::string_view text, const MatchSink& sink) const override {
    std::size_t done = 0;
    for (std::size_t at = 0; at < text.size();) {
      const auto [value, bytes] = utf8::decode(text.data() + at);
      if (contains_(value)) {
        if (at > done) sink(done, at, false);
        done = at + bytes;
        sink(at, done, true);
      }
      at += bytes;
    }
    if (done < text.size()) sink(done, text.size(), false);
  }

 private:
  bool (*contains_)(char32_t);
};

}  // namespace

std::unique_ptr<Matcher> match_literal(std::string literal) {
  return std::make_unique<LiteralMatcher>(std::move(literal));
}

std::unique_ptr<Matcher> match_class(bool (*contains)(char32_t)) {
  return std::make_unique<ClassMatcher>(contains);
}

std::unique_ptr<Matcher> match_pattern(const JsonNode& node) {
  if (node.has("String")) {
    std::string literal = node.text("String");
    if (literal.empty()) node.fail("the String to find is empty");
    return match_literal(std::move(literal));
  }
  if (!node.has("Regex")) node.fail("expected {\"String\": ...} or {\"Regex\": ...}");
  return match_regex(node.text("Regex"), std::string(node.source()) + ": " + node.path() + ".Regex");
}

}  // namespace ridge
