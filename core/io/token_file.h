// Token files: a text's token ids in HDF5. Dataset `tokens` (i32, 1-D, chunked); attributes of the root:
// ridge_format "tokens", version 1, vocab_size, count, tokenizer (its hash), sources (names, one a line).
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "core/io/file.h"
#include "core/io/hdf5.h"

namespace ridge {

/// Writes a token file piece by piece, in bounded memory; it appears under its name only in finish().
class TokenFileWriter {
 public:
  TokenFileWriter(const std::string& path, std::int64_t vocab_size, const std::string& tokenizer_hash,
                  std::span<const std::string> sources = {});
  /// UserError when an id is not in [0, vocab_size).
  void append(std::span<const std::int32_t> tokens);
  void finish();
  std::int64_t count() const { return count_; }

 private:
  void flush();
  AtomicFile target_;
  Hdf5File file_;
  std::int64_t vocab_size_;
  std::int64_t count_ = 0;
  std::vector<std::int32_t> buffer_;
};

/// Reads a token file of any size: nothing but the piece asked for, and some ahead of sequential reads, is in
/// memory. One object serves one thread.
class TokenFile {
 public:
  /// UserError when it is no token file, of another version, or not as long as it says.
  static TokenFile open(const std::string& path);

  /// Tokens in the file.
  std::int64_t size() const { return size_; }
  std::int64_t vocab_size() const { return vocab_size_; }
  const std::string& tokenizer_hash() const { return tokenizer_hash_; }
  const std::vector<std::string>& sources() const { return sources_; }
  const std::string& path() const { return file_.path(); }

  /// Fills `out` with the tokens from `offset` on; UserError when one of them is not in [0, vocab_size).
  void read(std::int64_t offset, std::span<std::int32_t> out);

 private:
  explicit TokenFile(Hdf5File file);
  void load(std::int64_t offset, std::span<std::int32_t> out) const;
  Hdf5File file_;
  std::int64_t size_ = 0;
  std::int64_t vocab_size_ = 0;
  std::string tokenizer_hash_;
  std::vector<std::string> sources_;
  std::vector<std::int32_t> ahead_;  // tokens from ahead_begin_ on
  std::int64_t ahead_begin_ = 0;
  std::int64_t last_end_ = 0;  // where the last read ended: a read from here on is sequential
};

}  // namespace ridge
