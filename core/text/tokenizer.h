// Text to token ids and back, from a Hugging Face tokenizer.json with a BPE model (formats.md, section 3).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace ridge {

struct TokenizerState;

/// Ids are those of Hugging Face `tokenizers`. `truncation`, `padding` and what follows a pair of texts are
/// not used.
///
/// Text need not be UTF-8. Bytes outside a well-formed sequence match no pattern and no added token;
/// byte-level BPE gives them the symbols of their bytes, byte fallback gives <0xHH>, other models the unknown
/// token or, as for every unknown character without one, nothing. `decode` gives exactly those bytes back in
/// the first two cases.
///
/// A value: copies share one immutable state, and const methods may run on several threads at once.
class Tokenizer {
 public:
  /// `source_name` stands in the messages of UserErrors: bad JSON, missing or ill-typed fields, anything
  /// unsupported.
  static Tokenizer from_json(std::string_view json, std::string_view source_name);

  /// Reads `model_dir`/tokenizer.json, and the names of the bos and eos tokens from tokenizer_config.json or
  /// special_tokens_map.json where present. `model_dir` may also be the path of a tokenizer.json itself.
  static Tokenizer load(const std::string& model_dir);

  /// `add_special_tokens`: what the post-processor adds (bos of Llama). Special tokens that the text spells
  /// out are found in any case.
  std::vector<std::int32_t> encode(std::string_view text, bool add_special_tokens) const;

  /// The text's own ids, where special tokens that it spells out are plain text: for text that is not to be
  /// trusted.
  std::vector<std::int32_t> encode_ordinary(std::string_view text) const;

  /// The bytes of the text, which are UTF-8 wherever whole characters were encoded. A UserError for an id
  /// that no token has.
  std::string decode(std::span<const std::int32_t> ids, bool skip_special_tokens = true) const;

  /// The same as valid UTF-8 with U+FFFD where Hugging Face puts it: byte-level, one for each maximal
  /// ill-formed part; byte fallback, one for each byte of a run of <0xHH> that is not valid as a whole.
  std::string decode_utf8(std::span<const std::int32_t> ids, bool skip_special_tokens = true) const;

  /// One more than the highest id.
  std::int64_t vocab_size() const;
  std::optional<std::int32_t> token_to_id(std::string_view token) const;
  /// The token as the file spells it, normalized where it is an added token sought in normalized text. A
  /// UserError for an id that no token has.
  std::string id_to_token(std::int32_t id) const;
  /// True for a token that is marked special. A UserError for an id that no token has.
  bool is_special(std::int32_t id) const;

  std::optional<std::int32_t> bos_id() const;
  std::optional<std::int32_t> eos_id() const;

 private:
  friend class DecodeStream;
  explicit Tokenizer(std::shared_ptr<const TokenizerState> state);

  std::shared_ptr<const TokenizerState> state_;
};

/// Gives out text token by token: whole UTF-8 sequences as soon as they are complete, bytes that cannot
/// become one as U+FFFD. All parts together are `decode(ids)` with ill-formed parts replaced. (A decoder that
/// rewrites text across tokens gives everything at `flush`.)
class DecodeStream {
 public:
  explicit DecodeStream(const Tokenizer& tokenizer, bool skip_special_tokens = true);

  /// What is pushed from now on goes on after these, whose text is not given out: a blank that a text's
  /// first token would lose stays. (A decoder that rewrites text across tokens does not mind them.)
  void follow(std::span<const std::int32_t> ids);
  /// The text that this token completes, which may be empty. A UserError for an id that no token has.
  std::string push(std::int32_t id);

  /// What was held back; the stream starts anew.
  std::string flush();

 private:
  void cut_prefix();

  std::shared_ptr<const TokenizerState> state_;
  bool skip_special_;
  bool is_first_ = true;
  std::size_t prefix_left_ = 0;    // copies of the decoder's prefix that may still be cut
  std::string held_;               // bytes not yet given out
  std::vector<std::int32_t> ids_;  // all ids, where the decoder does not stream
};

}  // namespace ridge
