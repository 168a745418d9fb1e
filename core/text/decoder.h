// The decoders of tokenizer.json: token strings to text.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "core/text/tokenizer_json.h"

namespace ridge {

/// What becomes of bytes that are not UTF-8: kept as they are, or replaced as Hugging Face does (ByteLevel:
/// U+FFFD for each maximal ill-formed part; ByteFallback: for each byte of a run of <0xHH> that is not valid
/// as a whole).
enum class BadBytes { kKeep, kReplace };

class DecodeStep {
 public:
  virtual ~DecodeStep() = default;
  virtual void apply(std::vector<std::string>& tokens, BadBytes bad_bytes) const = 0;
  /// True where the result is one string, whose pieces follow those of the tokens one by one.
  virtual bool joins() const { return false; }
  /// True where each token is changed alone (but for being the first or not), when bad bytes are kept.
  virtual bool is_local() const { return true; }
  /// Characters to cut from the start of a joined text; kept by streaming.
  struct Prefix {
    std::string symbol;
    std::size_t most = 0;
  };
  /// Set where, on a joined text, the step does nothing but cut such a prefix.
  virtual const Prefix* cut_prefix() const { return nullptr; }
};

/// A chain of steps; the empty chain, of a file without a decoder, puts spaces between tokens.
class Decoder {
 public:
  Decoder() = default;
  /// ByteLevel, Replace, ByteFallback, Fuse, Strip, Metaspace, Sequence; a UserError for others.
  explicit Decoder(const JsonNode& node);

  std::string decode(std::vector<std::string> tokens, BadBytes bad_bytes) const;

  /// True where text can be given out token by token: local steps, a joining one, and then one prefix cut at
  /// most.
  bool streams() const { return streams_; }
  /// The part of one token, before the prefix is cut. For streaming chains.
  std::string decode_one(std::string token, bool is_first) const;
  /// The prefix that streaming cuts; empty where there is none.
  DecodeStep::Prefix prefix() const;

 private:
  void add(const JsonNode& node, int depth);
  void plan_streaming();

  std::vector<std::unique_ptr<DecodeStep>> steps_;
  std::size_t local_steps_ = 0;  // those before the text is one string
  bool streams_ = true;
};

}  // namespace ridge
