// What a Tokenizer is made of.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "core/text/bpe.h"
#include "core/text/decoder.h"
#include "core/text/normalizer.h"
#include "core/text/postprocessor.h"
#include "core/text/pretokenizer.h"
#include "core/text/tokenizer.h"
#include "core/text/tokenizer_added.h"

namespace ridge {

struct TokenizerState {
  explicit TokenizerState(Bpe model) : bpe(std::move(model)) {}

  std::string source;
  Bpe bpe;
  /// What an id stands for; the views point into `bpe` and `added`.
  struct Entry {
    std::string_view token;
    bool known = false, special = false;
  };
  std::vector<Entry> entries;  // [vocab_size]
  std::unordered_map<std::int32_t, AddedToken> added;
  std::unordered_map<std::string, std::int32_t> added_ids;
  AddedTokenFinder raw_added;         // sought in the text as given
  AddedTokenFinder normalized_added;  // sought in normalized text
  std::unique_ptr<Normalizer> normalizer;
  PreTokenizers pretokenizers;
  PostProcessors postprocessors;
  Decoder decoder;
  std::optional<std::int32_t> bos, eos;
  bool bytes_to_model = false;  // pieces reach the model as raw bytes

  /// A UserError where no token has the id.
  const Entry& entry(std::int32_t id) const;
};

/// Reads the added tokens and the model. Throws a UserError for ids that are doubled or too high for the
/// file's size.
std::shared_ptr<TokenizerState> parse_tokenizer(std::string_view json, std::string_view source);

/// `model` of a tokenizer.json of `file_bytes` bytes, with a vocabulary of at least the added tokens' ids.
Bpe parse_bpe(const JsonNode& model, std::size_t file_bytes);

}  // namespace ridge
