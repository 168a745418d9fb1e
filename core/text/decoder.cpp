#include "core/text/decoder.h"

#include <nlohmann/json.hpp>

#include "core/base/error.h"
#include "core/text/decoder_steps.h"
#include "core/text/utf8.h"

namespace ridge {
namespace {

constexpr int kDeepest = 16;  // nested Sequences
constexpr std::int64_t kMostStripped = 1 << 20;

std::string one_character(const JsonNode& node, const char* key) {
  std::string symbol = node.text(key);
  if (!utf8::is_one_code_point(symbol))
    node.fail(fmt::format("{} must be one character, not {}", key, in_quotes(symbol)));
  return symbol;
}

std::unique_ptr<DecodeStep> make_strip(const JsonNode& node) {
  const auto start = static_cast<std::size_t>(node.integer("start", 0, kMostStripped));
  const auto stop = static_cast<std::size_t>(node.integer("stop", 0, kMostStripped));
  return decode_strip(one_character(node, "content"), start, stop);
}

std::unique_ptr<DecodeStep> make_metaspace(const JsonNode& node) {
  const std::string scheme =
      node.text("prepend_scheme", node.flag("add_prefix_space", true) ? "always" : "never");
  if (scheme != "always" && scheme != "first" && scheme != "never") {
    node.unsupported("prepend_scheme", scheme, "always, first, never");
  }
  return decode_metaspace(one_character(node, "replacement"), scheme != "never");
}

}  // namespace

Decoder::Decoder(const JsonNode& node) {
  add(node, 0);
  plan_streaming();
}

void Decoder::add(const JsonNode& node, int depth) {
  const std::string type = node.text("type");
  if (type == "Sequence") {
    if (depth >= kDeepest) node.fail("Sequences are nested too deeply");
    for (const JsonNode& step : node.items("decoders")) add(step, depth + 1);
  } else if (type == "ByteLevel") {
    steps_.push_back(decode_byte_level());
  } else if (type == "ByteFallback") {
    steps_.push_back(decode_byte_fallback());
  } else if (type == "Fuse") {
    steps_.push_back(decode_fuse());
  } else if (type == "Replace") {
    steps_.push_back(decode_replace(match_pattern(node.at("pattern")), node.text("content")));
  } else if (type == "Strip") {
    steps_.push_back(make_strip(node));
  } else if (type == "Metaspace") {
    steps_.push_back(make_metaspace(node));
  } else {
    node.unsupported("type", type, "ByteLevel, Replace, ByteFallback, Fuse, Strip, Metaspace, Sequence");
  }
  if (steps_.size() > 64) node.fail("more than 64 steps");
}

void Decoder::plan_streaming() {
  const auto joins = [this](std::size_t i) { return i == steps_.size() || steps_[i]->joins(); };
  while (!joins(local_steps_)) {
    streams_ &= steps_[local_steps_]->is_local() || joins(local_steps_ + 1);
    ++local_steps_;
  }
  const std::size_t after = local_steps_ + 1;
  if (after < steps_.size()) streams_ &= after + 1 == steps_.size() && steps_[after]->cut_prefix();
}

std::string Decoder::decode(std::vector<std::string> tokens, BadBytes bad_bytes) const {
  for (const auto& step : steps_) step->apply(tokens, bad_bytes);
  std::string out;
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    if (i > 0 && steps_.empty()) out += ' ';
    out += tokens[i];
  }
  return out;
}

// Steps tell the first token by its place, so a later one goes through with an empty one before it.
std::string Decoder::decode_one(std::string token, bool is_first) const {
  if (steps_.empty()) return is_first ? token : ' ' + token;
  std::vector<std::string> tokens;
  if (!is_first) tokens.emplace_back();
  tokens.push_back(std::move(token));
  for (std::size_t i = 0; i < local_steps_; ++i) steps_[i]->apply(tokens, BadBytes::kKeep);
  if (!is_first) tokens.erase(tokens.begin());
  if (local_steps_ < steps_.size()) steps_[local_steps_]->apply(tokens, BadBytes::kKeep);
  return std::move(tokens.front());
}

DecodeStep::Prefix Decoder::prefix() const {
  const std::size_t after = local_steps_ + 1;
  return streams_ && after < steps_.size() ? *steps_[after]->cut_prefix() : DecodeStep::Prefix{};
}

}  // namespace ridge
