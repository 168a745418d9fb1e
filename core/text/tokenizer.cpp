#include "core/text/tokenizer.h"

#include "core/base/error.h"
#include "core/text/tokenizer_state.h"
#include "core/text/utf8.h"

namespace ridge {
namespace {

constexpr std::size_t kMostTextBytes = std::size_t{1} << 31;  // positions are 32-bit

// One call of encode: the text through every stage.
class Encoding {
 public:
  Encoding(const TokenizerState& state, bool find_special, bool escaped)
      : state_(state), find_special_(find_special), escaped_(escaped) {}

  std::vector<std::int32_t> run(std::string_view text) {
    state_.raw_added.scan(text, find_special_, [&](std::size_t begin, std::size_t end, std::int32_t id) {
      if (id != Vocabulary::kNone) return ids_.push_back(id);
      normalize(text.substr(begin, end - begin), begin == 0);
    });
    return std::move(ids_);
  }

 private:
  void normalize(std::string_view text, bool at_start) {
    if (!state_.normalizer) return find_normalized(text, at_start);
    Segment segment{std::string(text), at_start, 64 * text.size() + 4096};
    state_.normalizer->apply(segment);
    find_normalized(segment.text, segment.at_start);
  }

  void find_normalized(std::string_view text, bool at_start) {
    state_.normalized_added.scan(
        text, find_special_, [&](std::size_t begin, std::size_t end, std::int32_t id) {
          if (id != Vocabulary::kNone) return ids_.push_back(id);
          const Piece piece{text.substr(begin, end - begin), at_start && begin == 0};
          state_.pretokenizers.split(piece, [this](Piece part) { encode_piece(part.text); });
        });
  }

  void encode_piece(std::string_view text) {
    if (!state_.bytes_to_model) return state_.bpe.encode_text(text, scratch_, ids_);
    if (!escaped_) return state_.bpe.encode_bytes(text, scratch_, ids_);
    state_.bpe.encode_bytes(utf8::unescape(text), scratch_, ids_);
  }

  const TokenizerState& state_;
  bool find_special_, escaped_;
  BpeScratch scratch_;
  std::vector<std::int32_t> ids_;
};

std::vector<std::int32_t> encode_with(const TokenizerState& state, std::string_view text, bool find_special) {
  require(text.size() < kMostTextBytes, "a text of {} bytes is too long to encode at once; cut it below {}",
          text.size(), kMostTextBytes);
  if (utf8::is_valid(text)) return Encoding(state, find_special, false).run(text);
  return Encoding(state, find_special, true).run(utf8::escape_invalid(text));
}

std::string decode_with(const TokenizerState& state, std::span<const std::int32_t> ids, bool skip_special,
                        BadBytes bad_bytes) {
  std::vector<std::string> tokens;
  std::size_t bytes = 0;
  for (const std::int32_t id : ids) {
    const auto& [token, known, special] = state.entry(id);
    if (skip_special && special) continue;
    bytes += token.size();
    require(bytes < kMostTextBytes, "{} ids decode to a text of {} bytes or more; decode fewer at once",
            ids.size(), kMostTextBytes);
    tokens.emplace_back(token);
  }
  return state.decoder.decode(std::move(tokens), bad_bytes);
}

}  // namespace

const TokenizerState::Entry& TokenizerState::entry(std::int32_t id) const {
  const bool known =
      id >= 0 && static_cast<std::size_t>(id) < entries.size() && entries[static_cast<std::size_t>(id)].known;
  require(known, "{}: no token has the id {}; the vocabulary's size is {}", source, id, entries.size());
  return entries[static_cast<std::size_t>(id)];
}

Tokenizer::Tokenizer(std::shared_ptr<const TokenizerState> state) : state_(std::move(state)) {}

Tokenizer Tokenizer::from_json(std::string_view json, std::string_view source_name) {
  return Tokenizer(parse_tokenizer(json, source_name));
}

std::vector<std::int32_t> Tokenizer::encode(std::string_view text, bool add_special_tokens) const {
  return state_->postprocessors.apply(encode_with(*state_, text, true), add_special_tokens);
}

std::vector<std::int32_t> Tokenizer::encode_ordinary(std::string_view text) const {
  return encode_with(*state_, text, false);
}

std::string Tokenizer::decode(std::span<const std::int32_t> ids, bool skip_special_tokens) const {
  return decode_with(*state_, ids, skip_special_tokens, BadBytes::kKeep);
}

std::string Tokenizer::decode_utf8(std::span<const std::int32_t> ids, bool skip_special_tokens) const {
  return decode_with(*state_, ids, skip_special_tokens, BadBytes::kReplace);
}

std::int64_t Tokenizer::vocab_size() const { return static_cast<std::int64_t>(state_->entries.size()); }

std::optional<std::int32_t> Tokenizer::token_to_id(std::string_view token) const {
  if (const auto found = state_->added_ids.find(std::string(token)); found != state_->added_ids.end()) {
    return found->second;
  }
  const std::int32_t id = state_->bpe.vocabulary().find(token);
  return id == Vocabulary::kNone ? std::nullopt : std::optional(id);
}

std::string Tokenizer::id_to_token(std::int32_t id) const { return std::string(state_->entry(id).token); }

bool Tokenizer::is_special(std::int32_t id) const { return state_->entry(id).special; }

std::optional<std::int32_t> Tokenizer::bos_id() const { return state_->bos; }

std::optional<std::int32_t> Tokenizer::eos_id() const { return state_->eos; }

}  // namespace ridge
