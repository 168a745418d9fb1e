#include "core/text/normalizer.h"

#include <utf8proc.h>

#include <nlohmann/json.hpp>
#include <vector>

#include "core/base/error.h"
#include "core/text/byte_alphabet.h"
#include "core/text/tokenizer_match.h"
#include "core/text/utf8.h"

namespace ridge {
namespace {

constexpr int kDeepest = 16;  // nested Sequences

void require_room(const Segment& segment, std::size_t bytes) {
  require(bytes <= segment.most_bytes,
          "the tokenizer's normalizer grows {} bytes of text to more than {}; mend it", segment.text.size(),
          segment.most_bytes);
}

class SequenceNormalizer final : public Normalizer {
 public:
  explicit SequenceNormalizer(std::vector<std::unique_ptr<Normalizer>> steps) : steps_(std::move(steps)) {}
  void apply(Segment& segment) const override {
    for (const auto& step : steps_) {
      step->apply(segment);
      require_room(segment, segment.text.size());
    }
  }

 private:
  std::vector<std::unique_ptr<Normalizer>> steps_;
};

class UnicodeNormalizer final : public Normalizer {
 public:
  explicit UnicodeNormalizer(NormalForm form) : form_(form) {}
  void apply(Segment& segment) const override { segment.text = normal_form(segment.text, form_); }

 private:
  NormalForm form_;
};

class LowercaseNormalizer final : public Normalizer {
 public:
  void apply(Segment& segment) const override {
    std::string out;
    out.reserve(segment.text.size());
    for (std::size_t at = 0; at < segment.text.size();) {
      const auto [value, bytes] = utf8::decode(segment.text.data() + at);
      if (value == 0x130) {  // the one character whose lower case is two, in any context
        out += "i\xCC\x87";
      } else {
        utf8::append(out, static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(value))));
      }
      at += bytes;
    }
    segment.text = std::move(out);
  }
};

class PrependNormalizer final : public Normalizer {
 public:
  explicit PrependNormalizer(std::string prefix) : prefix_(std::move(prefix)) {}
  void apply(Segment& segment) const override {
    if (!segment.text.empty()) segment.text.insert(0, prefix_);
  }

 private:
  std::string prefix_;
};

class ReplaceNormalizer final : public Normalizer {
 public:
  ReplaceNormalizer(std::unique_ptr<Matcher> pattern, std::string content)
      : pattern_(std::move(pattern)), content_(std::move(content)) {}

  void apply(Segment& segment) const override {
    std::string out;
    out.reserve(segment.text.size());
    bool cut_first = false;
    pattern_->scan(segment.text, [&](std::size_t begin, std::size_t end, bool is_match) {
      if (!is_match) {
        out.append(segment.text, begin, end - begin);
      } else {
        cut_first |= begin == 0 && end > 0 && content_.empty();
        out += content_;
        require_room(segment, out.size());
      }
    });
    segment.text = std::move(out);
    if (cut_first) segment.at_start = false;
  }

 private:
  std::unique_ptr<Matcher> pattern_;
  std::string content_;
};

class StripNormalizer final : public Normalizer {
 public:
  StripNormalizer(bool left, bool right) : left_(left), right_(right) {}

  void apply(Segment& segment) const override {
    std::string_view rest = segment.text;
    while (left_ && !rest.empty() && utf8::is_space(utf8::decode(rest.data()).value)) {
      rest.remove_prefix(utf8::decode(rest.data()).bytes);
      segment.at_start = false;
    }
    while (right_ && !rest.empty() && utf8::is_space(utf8::decode_last(rest).value)) {
      rest.remove_suffix(utf8::decode_last(rest).bytes);
    }
    segment.text = std::string(rest);
  }

 private:
  bool left_, right_;
};

class ByteLevelNormalizer final : public Normalizer {
 public:
  void apply(Segment& segment) const override { segment.text = map_bytes(segment.text); }
};

std::unique_ptr<Normalizer> make(const JsonNode& node, int depth) {
  const std::string type = node.text("type");
  if (type == "Sequence") {
    if (depth >= kDeepest) node.fail("Sequences are nested too deeply");
    std::vector<std::unique_ptr<Normalizer>> steps;
    for (const JsonNode& step : node.items("normalizers")) steps.push_back(make(step, depth + 1));
    return std::make_unique<SequenceNormalizer>(std::move(steps));
  }
  if (type == "NFC") return std::make_unique<UnicodeNormalizer>(NormalForm::kNfc);
  if (type == "NFD") return std::make_unique<UnicodeNormalizer>(NormalForm::kNfd);
  if (type == "NFKC") return std::make_unique<UnicodeNormalizer>(NormalForm::kNfkc);
  if (type == "NFKD") return std::make_unique<UnicodeNormalizer>(NormalForm::kNfkd);
  if (type == "Lowercase") return std::make_unique<LowercaseNormalizer>();
  if (type == "Prepend") return std::make_unique<PrependNormalizer>(node.text("prepend"));
  if (type == "Replace") {
    return std::make_unique<ReplaceNormalizer>(match_pattern(node.at("pattern")), node.text("content"));
  }
  if (type == "Strip") {
    return std::make_unique<StripNormalizer>(node.flag("strip_left", true), node.flag("strip_right", true));
  }
  if (type == "ByteLevel") return std::make_unique<ByteLevelNormalizer>();
  node.unsupported("type", type,
                   "Sequence, NFC, NFD, NFKC, NFKD, Lowercase, Prepend, Replace, Strip, ByteLevel");
}

}  // namespace

std::unique_ptr<Normalizer> make_normalizer(const JsonNode& node) { return make(node, 0); }

}  // namespace ridge
