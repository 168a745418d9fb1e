// The normalizers of tokenizer.json: what is done to text before added tokens are sought a second time.
#pragma once

#include <cstddef>
#include <memory>
#include <string>

#include "core/text/tokenizer_json.h"

namespace ridge {

/// A stretch of text between added tokens. Escaped bytes (utf8.h) pass through every normalizer.
struct Segment {
  std::string text;
  bool at_start = false;       // its first character stands at offset 0 of the original text
  std::size_t most_bytes = 0;  // what the text may grow to
};

class Normalizer {
 public:
  virtual ~Normalizer() = default;
  /// Throws a UserError where the text outgrows `segment.most_bytes`.
  virtual void apply(Segment& segment) const = 0;
};

/// Sequence, NFC, NFD, NFKC, NFKD, Lowercase, Prepend, Replace, Strip, ByteLevel; a UserError for others.
std::unique_ptr<Normalizer> make_normalizer(const JsonNode& node);

enum class NormalForm { kNfc, kNfd, kNfkc, kNfkd };
/// Unicode normal form (UAX 15) of well-formed or escaped text, in linear time but for runs of marks (n log
/// n).
std::string normal_form(std::string_view text, NormalForm form);

}  // namespace ridge
