// Tokens by position: of texts in memory, of token files that may be larger than memory, or of several in a
// row.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace ridge {

class Tokenizer;

class TokenStream {
 public:
  virtual ~TokenStream() = default;
  virtual std::int64_t size() const = 0;
  /// Tokens offset .. offset + out.size() - 1; they must lie within the stream.
  virtual void read(std::int64_t offset, std::span<std::int32_t> out) = 0;
};

std::unique_ptr<TokenStream> memory_stream(std::vector<std::int32_t> tokens);

/// Files one after the other: token files (HDF5) are streamed, anything else is text, encoded without special
/// tokens as a whole. UserErrors name a file that is missing, empty, or made for a larger vocabulary than
/// `vocab_size`.
std::unique_ptr<TokenStream> open_token_stream(const std::vector<std::string>& files,
                                               const Tokenizer& tokenizer, std::int64_t vocab_size);

/// The text of a file encoded; a UserError where it has no tokens or one outside the embedding.
std::vector<std::int32_t> encode_file(const std::string& path, const Tokenizer& tokenizer,
                                      bool add_special_tokens, std::int64_t vocab_size);

/// A fingerprint of what a tokenizer does, kept in token files: vocabulary size and the encoding of a fixed
/// text.
std::string tokenizer_fingerprint(const Tokenizer& tokenizer);

}  // namespace ridge
