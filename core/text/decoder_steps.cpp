#include "core/text/decoder_steps.h"

#include <optional>

#include "core/base/error.h"
#include "core/text/byte_alphabet.h"
#include "core/text/utf8.h"

namespace ridge {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

// Appends the bytes of a token, or the token as it is where some character is no byte symbol.
void append_bytes(std::string& out, std::string_view token) {
  const std::size_t begin = out.size();
  for (std::size_t at = 0; at < token.size();) {
    const auto [value, bytes] = utf8::decode(token.data() + at);
    const int byte = symbol_byte(value);
    if (byte < 0) {
      out.resize(begin);
      out += token;
      return;
    }
    out.push_back(static_cast<char>(byte));
    at += bytes;
  }
}

class ByteLevelStep final : public DecodeStep {
 public:
  void apply(std::vector<std::string>& tokens, BadBytes bad_bytes) const override {
    std::string out;
    for (const std::string& token : tokens) append_bytes(out, token);
    if (bad_bytes == BadBytes::kReplace && !utf8::is_valid(out)) out = utf8::replace_invalid(out);
    tokens.assign(1, std::move(out));
  }
  bool joins() const override { return true; }
};

std::optional<char> fallback_byte(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return std::nullopt;
  int value = 0;
  for (const char c : token.substr(3, 2)) {
    const std::size_t digit =
        std::string_view("0123456789abcdef").find(c >= 'A' && c <= 'F' ? static_cast<char>(c + 32) : c);
    if (digit == std::string_view::npos) return std::nullopt;
    value = value * 16 + static_cast<int>(digit);
  }
  return static_cast<char>(value);
}

class ByteFallbackStep final : public DecodeStep {
 public:
  void apply(std::vector<std::string>& tokens, BadBytes bad_bytes) const override {
    std::vector<std::string> out;
    std::string run;
    const auto flush = [&] {
      if (run.empty()) return;
      if (bad_bytes == BadBytes::kKeep || utf8::is_valid(run)) {
        out.push_back(run);
      } else {
        out.insert(out.end(), run.size(), std::string(kReplacement));
      }
      run.clear();
    };
    for (std::string& token : tokens) {
      if (const std::optional<char> byte = fallback_byte(token)) {
        run.push_back(*byte);
      } else {
        flush();
        out.push_back(std::move(token));
      }
    }
    flush();
    tokens = std::move(out);
  }
  bool is_local() const override { return false; }
};

class FuseStep final : public DecodeStep {
 public:
  void apply(std::vector<std::string>& tokens, BadBytes) const override {
    std::string out;
    for (const std::string& token : tokens) out += token;
    tokens.assign(1, std::move(out));
  }
  bool joins() const override { return true; }
};

class ReplaceStep final : public DecodeStep {
 public:
  ReplaceStep(std::unique_ptr<Matcher> pattern, std::string content)
      : pattern_(std::move(pattern)), content_(std::move(content)) {}

  void apply(std::vector<std::string>& tokens, BadBytes) const override {
    for (std::string& token : tokens)
      token = utf8::is_valid(token) ? replaced(token) : replaced_in_bytes(token);
  }

 private:
  std::string replaced(std::string_view token) const {
    std::string out;
    const std::size_t most = 64 * token.size() + 4096;
    pattern_->scan(token, [&](std::size_t begin, std::size_t end, bool is_match) {
      out += is_match ? std::string_view(content_) : token.substr(begin, end - begin);
      require(out.size() <= most, "the tokenizer's decoder grows {} bytes to more than {}; mend it",
              token.size(), most);
    });
    return out;
  }

  std::string replaced_in_bytes(std::string_view bytes) const {
    return utf8::unescape(replaced(utf8::escape_invalid(bytes)));
  }

  std::unique_ptr<Matcher> pattern_;
  std::string content_;
};

class StripStep final : public DecodeStep {
 public:
  StripStep(std::string symbol, std::size_t start, std::size_t stop)
      : start_{std::move(symbol), start}, stop_(stop) {}

  void apply(std::vector<std::string>& tokens, BadBytes) const override {
    for (std::string& token : tokens) {
      std::string_view rest = token;
      for (std::size_t i = 0; i < start_.most && rest.starts_with(start_.symbol); ++i)
        rest.remove_prefix(start_.symbol.size());
      for (std::size_t i = 0; i < stop_ && rest.ends_with(start_.symbol); ++i)
        rest.remove_suffix(start_.symbol.size());
      token = std::string(rest);
    }
  }
  const Prefix* cut_prefix() const override { return stop_ == 0 ? &start_ : nullptr; }

 private:
  Prefix start_;
  std::size_t stop_;
};

class MetaspaceStep final : public DecodeStep {
 public:
  MetaspaceStep(std::string symbol, bool drop_first) : symbol_(std::move(symbol)), drop_first_(drop_first) {}

  void apply(std::vector<std::string>& tokens, BadBytes) const override {
    for (std::size_t i = 0; i < tokens.size(); ++i) {
      const std::string_view with = i == 0 && drop_first_ ? "" : " ";
      std::string out;
      std::size_t done = 0;
      for (std::size_t at; (at = tokens[i].find(symbol_, done)) != std::string::npos;
           done = at + symbol_.size()) {
        out.append(tokens[i], done, at - done).append(with);
      }
      tokens[i] = out.append(tokens[i], done, std::string::npos);
    }
  }

 private:
  std::string symbol_;
  bool drop_first_;
};

}  // namespace

std::unique_ptr<DecodeStep> decode_byte_level() { return std::make_unique<ByteLevelStep>(); }
std::unique_ptr<DecodeStep> decode_byte_fallback() { return std::make_unique<ByteFallbackStep>(); }
std::unique_ptr<DecodeStep> decode_fuse() { return std::make_unique<FuseStep>(); }

std::unique_ptr<DecodeStep> decode_replace(std::unique_ptr<Matcher> pattern, std::string content) {
  return std::make_unique<ReplaceStep>(std::move(pattern), std::move(content));
}

std::unique_ptr<DecodeStep> decode_strip(std::string symbol, std::size_t start, std::size_t stop) {
  return std::make_unique<StripStep>(std::move(symbol), start, stop);
}

std::unique_ptr<DecodeStep> decode_metaspace(std::string symbol, bool drop_first) {
  return std::make_unique<MetaspaceStep>(std::move(symbol), drop_first);
}

}  // namespace ridge
