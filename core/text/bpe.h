// Byte-pair encoding of one piece: symbols, ranked merges, unknown characters, byte fallback.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/text/bpe_cache.h"
#include "core/text/tokenizer_map.h"

namespace ridge {

struct Merge {
  std::int32_t left, right, result;
};

struct BpeOptions {
  std::optional<std::string> unk_token;
  bool fuse_unk = false;       // a run of unknown characters gives one unk
  bool byte_fallback = false;  // an unknown character gives <0xHH> of each byte, where all of them exist
  bool ignore_merges = false;  // a piece that is a token as it stands is that token
};

/// What one encoding keeps between pieces; one a thread.
struct BpeScratch {
  PieceCache cache;
  std::vector<std::int32_t> symbols;
};

/// Ranked merges (Sennrich et al. 2016) with the order and the corner cases of Hugging Face's BPE.
class Bpe {
 public:
  /// Merges in order of rank; of two with the same operands the later counts.
  Bpe(Vocabulary vocabulary, const std::vector<Merge>& merges, BpeOptions options);

  /// Appends the ids of a piece whose symbols are its characters. Escaped bytes (utf8.h) become <0xHH> or
  /// unk.
  void encode_text(std::string_view piece, BpeScratch& scratch, std::vector<std::int32_t>& ids) const;

  /// Appends the ids of raw bytes whose symbols are those of the byte-level alphabet.
  void encode_bytes(std::string_view piece, BpeScratch& scratch, std::vector<std::int32_t>& ids) const;

  /// True where the vocabulary holds the symbols of all 256 bytes, which encode_bytes needs.
  bool has_byte_alphabet() const { return has_byte_alphabet_; }
  const Vocabulary& vocabulary() const { return vocabulary_; }

 private:
  struct Step {
    std::uint32_t rank;
    std::int32_t result;
  };

  void index_characters();
  void index_bytes();
  void index_joins(const std::vector<Merge>& merges);
  std::int32_t character_id(char32_t value) const;
  bool may_cut(char32_t left, char32_t right) const;
  void encode_chunk(std::string_view chunk, BpeScratch& scratch, std::vector<std::int32_t>& ids) const;
  void append_symbols(std::string_view chunk, std::vector<std::int32_t>& symbols) const;
  bool append_fallback(std::string_view character, std::vector<std::int32_t>& symbols) const;
  std::int32_t unknown_id(char32_t value) const;
  void merge(std::vector<std::int32_t>& symbols) const;
  void merge_short(std::vector<std::int32_t>& symbols) const;
  void merge_long(std::vector<std::int32_t>& symbols) const;
  const Step* step(std::int32_t left, std::int32_t right) const;

  Vocabulary vocabulary_;
  BpeOptions options_;
  PairMap<Step> steps_;                       // (left, right) -> step
  std::vector<std::int32_t> low_characters_;  // id of each character below kLowCharacters, or kNone
  PairMap<std::int32_t> high_characters_;
  PairMap<char> joins_;  // (last character of left, first character of right) of every merge
  bool cuttable_ = true;
  bool drops_unknown_ = false;                      // an unknown character may give no symbol at all
  std::array<std::int32_t, 256> byte_symbols_{};    // of the byte-level alphabet
  std::array<std::int32_t, 256> fallback_bytes_{};  // <0xHH>
  std::int32_t unk_ = Vocabulary::kNone;
  bool has_byte_alphabet_ = false;
};

}  // namespace ridge
