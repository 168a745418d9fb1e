#include "core/text/pretokenizer.h"

#include <nlohmann/json.hpp>

#include "core/base/error.h"
#include "core/text/byte_alphabet.h"
#include "core/text/pretokenizer_split.h"
#include "core/text/tokenizer_match.h"
#include "core/text/utf8.h"

namespace ridge {
namespace {

constexpr int kDeepest = 16;  // nested Sequences

constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
// Word characters of UTS 18, as the Whitespace pre-tokenizer has them.
constexpr std::string_view kWordsPattern =
    R"([\x{200C}\x{200D}\p{Alphabetic}\p{M}\p{Nd}\p{Pc}]+|[^\x{200C}\x{200D}\s\p{Alphabetic}\p{M}\p{Nd}\p{Pc}]+)";

class PrefixSpace final : public PreTokenizer {
 public:
  void split(Piece piece, const PieceSink& sink) const override {
    if (piece.text.starts_with(' ')) return sink(piece);
    const std::string text = ' ' + std::string(piece.text);
    sink({text, piece.at_start});
  }
};

class MapBytes final : public PreTokenizer {
 public:
  void split(Piece piece, const PieceSink& sink) const override {
    const std::string text = map_bytes(piece.text);
    sink({text, piece.at_start});
  }
};

enum class Prepend { kAlways, kFirst, kNever };

class MetaspacePrefix final : public PreTokenizer {
 public:
  MetaspacePrefix(std::string symbol, Prepend prepend) : symbol_(std::move(symbol)), prepend_(prepend) {}

  void split(Piece piece, const PieceSink& sink) const override {
    std::string text;
    text.reserve(piece.text.size() + piece.text.size() / 4 + symbol_.size());
    const bool wanted = prepend_ == Prepend::kAlways || (prepend_ == Prepend::kFirst && piece.at_start);
    if (wanted && !piece.text.starts_with(symbol_) && !piece.text.starts_with(' ')) text = symbol_;
    for (const char c : piece.text) {
      if (c == ' ') {
        text += symbol_;
      } else {
        text += c;
      }
    }
    sink({text, piece.at_start});
  }

 private:
  std::string symbol_;
  Prepend prepend_;
};

SplitBehavior parse_behavior(const JsonNode& node, std::string_view when_absent) {
  const std::string name = node.text("behavior", when_absent);
  if (name == "Removed") return SplitBehavior::kRemoved;
  if (name == "Isolated") return SplitBehavior::kIsolated;
  if (name == "MergedWithPrevious") return SplitBehavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return SplitBehavior::kMergedWithNext;
  if (name == "Contiguous") return SplitBehavior::kContiguous;
  node.unsupported("behavior", name, "Removed, Isolated, MergedWithPrevious, MergedWithNext, Contiguous");
}

Prepend parse_prepend(const JsonNode& node) {
  // Files from before prepend_scheme say add_prefix_space.
  const std::string name =
      node.text("prepend_scheme", node.flag("add_prefix_space", true) ? "always" : "never");
  if (name == "always") return Prepend::kAlways;
  if (name == "first") return Prepend::kFirst;
  if (name == "never") return Prepend::kNever;
  node.unsupported("prepend_scheme", name, "always, first, never");
}

}  // namespace

PreTokenizers::PreTokenizers(const JsonNode& node) { add(node, 0); }

void PreTokenizers::map_bytes_here() {
  check(byte_level_, "no byte-level step was left out");
  byte_level_ = false;
  steps_.push_back(std::make_unique<MapBytes>());
}

void PreTokenizers::run(std::size_t step, Piece piece, const PieceSink& sink) const {
  if (step == steps_.size()) return sink(piece);
  steps_[step]->split(piece, [&](Piece part) { run(step + 1, part, sink); });
}

void PreTokenizers::add(const JsonNode& node, int depth) {
  const std::string type = node.text("type");
  if (type == "Sequence") {
    if (depth >= kDeepest) node.fail("Sequences are nested too deeply");
    for (const JsonNode& step : node.items("pretokenizers")) add(step, depth + 1);
    return;
  }
  if (steps_.size() >= 64) node.fail("more than 64 steps");
  if (byte_level_ && type == "ByteLevel")
    node.fail("a second ByteLevel in one pre_tokenizer is not supported");
  if (byte_level_) map_bytes_here();
  const auto push_split = [this](std::unique_ptr<Matcher> pattern, SplitBehavior behavior, bool invert) {
    steps_.push_back(make_split(std::move(pattern), behavior, invert));
  };
  const std::string where = std::string(node.source()) + ": " + node.path();
  if (type == "ByteLevel") {
    if (node.flag("add_prefix_space", true)) steps_.push_back(std::make_unique<PrefixSpace>());
    if (node.flag("use_regex", true))
      push_split(match_regex(kGpt2Pattern, where), SplitBehavior::kIsolated, false);
    byte_level_ = true;
  } else if (type == "Split") {
    push_split(match_pattern(node.at("pattern")), parse_behavior(node, ""), node.flag("invert", false));
  } else if (type == "Metaspace") {
    const std::string symbol = node.text("replacement");
    if (!utf8::is_one_code_point(symbol))
      node.fail("replacement must be one character, not " + in_quotes(symbol));
    steps_.push_back(std::make_unique<MetaspacePrefix>(symbol, parse_prepend(node)));
    if (node.flag("split", true)) push_split(match_literal(symbol), SplitBehavior::kMergedWithNext, false);
  } else if (type == "Digits") {
    const bool individual = node.flag("individual_digits", false);
    push_split(match_class(utf8::is_numeric),
               individual ? SplitBehavior::kIsolated : SplitBehavior::kContiguous, false);
  } else if (type == "Punctuation") {
    push_split(match_class(utf8::is_punctuation), parse_behavior(node, "Isolated"), false);
  } else if (type == "Whitespace") {
    push_split(match_regex(kWordsPattern, where), SplitBehavior::kRemoved, true);
  } else if (type == "WhitespaceSplit") {
    push_split(match_class(utf8::is_space), SplitBehavior::kRemoved, false);
  } else {
    node.unsupported(
        "type", type,
        "ByteLevel, Split, Metaspace, Digits, Punctuation, Whitespace, WhitespaceSplit, Sequence");
  }
}

}  // namespace ridge
