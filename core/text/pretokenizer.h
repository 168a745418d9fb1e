// The pre-tokenizers of tokenizer.json: they cut normalized text into the pieces that BPE sees one by one.
#pragma once

#include <functional>
#include <memory>
#include <string_view>
#include <vector>

#include "core/text/tokenizer_json.h"

namespace ridge {

struct Piece {
  std::string_view text;
  bool at_start = false;  // its first character stands at offset 0 of the original text
};
/// Receives non-empty pieces in order; the text lives until the call returns.
using PieceSink = std::function<void(Piece)>;

class PreTokenizer {
 public:
  virtual ~PreTokenizer() = default;
  virtual void split(Piece piece, const PieceSink& sink) const = 0;
};

/// Steps that run one after the other on each piece; none: the whole text is one piece.
class PreTokenizers {
 public:
  PreTokenizers() = default;
  /// ByteLevel, Split, Metaspace, Digits, Punctuation, Whitespace, WhitespaceSplit, Sequence; a UserError for
  /// others.
  explicit PreTokenizers(const JsonNode& node);

  void split(Piece piece, const PieceSink& sink) const { run(0, piece, sink); }

  /// True where the last step maps bytes to symbols. It is left out: pieces arrive as raw text, and the model
  /// maps them itself, until `map_bytes_here` puts it back.
  bool ends_in_byte_level() const { return byte_level_; }
  void map_bytes_here();

 private:
  void add(const JsonNode& node, int depth);
  void run(std::size_t step, Piece piece, const PieceSink& sink) const;

  std::vector<std::unique_ptr<PreTokenizer>> steps_;
  bool byte_level_ = false;
};

}  // namespace ridge
