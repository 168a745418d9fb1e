#include "core/text/bpe.h"

#include <algorithm>

#include "core/base/error.h"
#include "core/text/byte_alphabet.h"
#include "core/text/tokenizer_json.h"
#include "core/text/utf8.h"

namespace ridge {
namespace {

constexpr char32_t kLowCharacters = 0x3100;  // Latin to kana: a table; above: a hash map

std::string fallback_token(unsigned byte) { return fmt::format("<0x{:02X}>", byte); }

}  // namespace

Bpe::Bpe(Vocabulary vocabulary, const std::vector<Merge>& merges, BpeOptions options)
    : vocabulary_(std::move(vocabulary)), options_(std::move(options)), steps_(merges.size()) {
  for (std::size_t rank = 0; rank < merges.size(); ++rank) {
    const auto [left, right, result] = merges[rank];
    steps_.assign(pack_pair(static_cast<std::uint32_t>(left), static_cast<std::uint32_t>(right)),
                  {static_cast<std::uint32_t>(rank), result});
  }
  if (options_.unk_token) unk_ = vocabulary_.find(*options_.unk_token);
  index_characters();
  index_bytes();
  index_joins(merges);
}

void Bpe::index_characters() {
  low_characters_.assign(kLowCharacters, Vocabulary::kNone);
  for (std::int32_t id = 0; static_cast<std::size_t>(id) < vocabulary_.size(); ++id) {
    if (!vocabulary_.contains(id) || !utf8::is_one_code_point(vocabulary_.token(id))) continue;
    const char32_t value = utf8::decode(vocabulary_.token(id).data()).value;
    if (value < kLowCharacters) {
      low_characters_[value] = id;
    } else {
      high_characters_.assign(value, id);
    }
  }
}

void Bpe::index_bytes() {
  has_byte_alphabet_ = true;
  for (unsigned byte = 0; byte < 256; ++byte) {
    byte_symbols_[byte] = character_id(byte_symbol(static_cast<unsigned char>(byte)));
    has_byte_alphabet_ &= byte_symbols_[byte] != Vocabulary::kNone;
    fallback_bytes_[byte] = vocabulary_.find(fallback_token(byte));
  }
  const bool falls_back = options_.byte_fallback && std::find(fallback_bytes_.begin(), fallback_bytes_.end(),
                                                              Vocabulary::kNone) == fallback_bytes_.end();
  drops_unknown_ = !options_.unk_token && !falls_back;
}

// A merge across two characters that end and begin no operands cannot happen, so text may be cut there. That
// holds while symbols are what their tokens spell: not where merges join unk or fallback bytes.
void Bpe::index_joins(const std::vector<Merge>& merges) {
  std::vector<bool> spells_other(vocabulary_.size());
  if (unk_ != Vocabulary::kNone) spells_other[static_cast<std::size_t>(unk_)] = true;
  for (const std::int32_t id : fallback_bytes_) {
    if (id != Vocabulary::kNone) spells_other[static_cast<std::size_t>(id)] = true;
  }
  for (const Merge& merge : merges) {
    const std::string_view left = vocabulary_.token(merge.left), right = vocabulary_.token(merge.right);
    if (left.empty() || right.empty() || spells_other[static_cast<std::size_t>(merge.left)] ||
        spells_other[static_cast<std::size_t>(merge.right)]) {
      cuttable_ = false;
      return;
    }
    joins_.assign(pack_pair(utf8::decode_last(left).value, utf8::decode(right.data()).value), 1);
  }
}

std::int32_t Bpe::character_id(char32_t value) const {
  if (value < kLowCharacters) return low_characters_[value];
  const std::int32_t* id = high_characters_.find(value);
  return id ? *id : Vocabulary::kNone;
}

// A known character on the right also ends every run of unknown ones. Where those leave no symbol, what
// stands before them comes to stand beside what follows.
bool Bpe::may_cut(char32_t left, char32_t right) const {
  return character_id(right) != Vocabulary::kNone && !joins_.find(pack_pair(left, right)) &&
         (!drops_unknown_ || character_id(left) != Vocabulary::kNone);
}

void Bpe::encode_text(std::string_view piece, BpeScratch& scratch, std::vector<std::int32_t>& ids) const {
  if (options_.ignore_merges) {
    if (const std::int32_t id = vocabulary_.find(piece); id != Vocabulary::kNone) return ids.push_back(id);
  }
  if (!cuttable_) return encode_chunk(piece, scratch, ids);
  std::size_t begin = 0;
  char32_t last = 0;
  for (std::size_t at = 0; at < piece.size();) {
    const auto [value, bytes] = utf8::decode(piece.data() + at);
    if (at > begin && may_cut(last, value)) {
      encode_chunk(piece.substr(begin, at - begin), scratch, ids);
      begin = at;
    }
    last = value;
    at += bytes;
  }
  if (begin < piece.size()) encode_chunk(piece.substr(begin), scratch, ids);
}

void Bpe::encode_chunk(std::string_view chunk, BpeScratch& scratch, std::vector<std::int32_t>& ids) const {
  const bool cached = chunk.size() <= PieceCache::kMostPieceBytes;
  if (cached && scratch.cache.append(chunk, ids)) return;
  scratch.symbols.clear();
  append_symbols(chunk, scratch.symbols);
  merge(scratch.symbols);
  if (cached) scratch.cache.add(chunk, scratch.symbols);
  ids.insert(ids.end(), scratch.symbols.begin(), scratch.symbols.end());
}

void Bpe::encode_bytes(std::string_view piece, BpeScratch& scratch, std::vector<std::int32_t>& ids) const {
  if (piece.size() == 1) return ids.push_back(byte_symbols_[static_cast<unsigned char>(piece[0])]);
  const bool cached = piece.size() <= PieceCache::kMostPieceBytes;
  if (cached && scratch.cache.append(piece, ids)) return;
  std::vector<std::int32_t>& symbols = scratch.symbols;
  symbols.clear();
  std::int32_t whole = Vocabulary::kNone;
  if (options_.ignore_merges) whole = vocabulary_.find(map_bytes(piece));
  if (whole != Vocabulary::kNone) {
    symbols.push_back(whole);
  } else {
    for (const char c : piece) symbols.push_back(byte_symbols_[static_cast<unsigned char>(c)]);
    merge(symbols);
  }
  if (cached) scratch.cache.add(piece, symbols);
  ids.insert(ids.end(), symbols.begin(), symbols.end());
}

// As in Hugging Face's BPE, an unk that waits to be fused stands after fallback bytes that follow it.
void Bpe::append_symbols(std::string_view chunk, std::vector<std::int32_t>& symbols) const {
  std::int32_t waiting = Vocabulary::kNone;
  const auto flush = [&] {
    if (waiting != Vocabulary::kNone) symbols.push_back(waiting);
    waiting = Vocabulary::kNone;
  };
  for (std::size_t at = 0; at < chunk.size();) {
    const auto [value, bytes] = utf8::decode(chunk.data() + at);
    const std::int32_t id = character_id(value);
    if (id != Vocabulary::kNone) {
      flush();
      symbols.push_back(id);
    } else if (!append_fallback(chunk.substr(at, bytes), symbols) && options_.unk_token) {
      if (!options_.fuse_unk) flush();
      waiting = unknown_id(value);
    }
    at += bytes;
  }
  flush();
}

bool Bpe::append_fallback(std::string_view character, std::vector<std::int32_t>& symbols) const {
  if (!options_.byte_fallback) return false;
  const auto fallback = [this](auto byte) { return fallback_bytes_[static_cast<unsigned char>(byte)]; };
  if (const char32_t value = utf8::decode(character.data()).value; utf8::is_escape(value)) {
    const std::int32_t id = fallback(value - 0xDC00);
    if (id != Vocabulary::kNone) symbols.push_back(id);
    return id != Vocabulary::kNone;
  }
  for (const char c : character) {
    if (fallback(c) == Vocabulary::kNone) return false;
  }
  for (const char c : character) symbols.push_back(fallback(c));
  return true;
}

std::int32_t Bpe::unknown_id(char32_t value) const {
  require(unk_ != Vocabulary::kNone,
          "the text holds U+{:04X}, which the tokenizer does not know, and its unk_token {} is not in the "
          "vocabulary",
          static_cast<std::uint32_t>(value), in_quotes(*options_.unk_token));
  return unk_;
}

const Bpe::Step* Bpe::step(std::int32_t left, std::int32_t right) const {
  return steps_.find(pack_pair(static_cast<std::uint32_t>(left), static_cast<std::uint32_t>(right)));
}

}  // namespace ridge
