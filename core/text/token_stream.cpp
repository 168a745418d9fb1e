#include "core/text/token_stream.h"

#include <algorithm>

#include "core/base/error.h"
#include "core/io/checksum.h"
#include "core/io/file.h"
#include "core/io/token_file.h"
#include "core/text/tokenizer.h"

namespace ridge {
namespace {

class MemoryStream final : public TokenStream {
 public:
  explicit MemoryStream(std::vector<std::int32_t> tokens) : tokens_(std::move(tokens)) {}
  std::int64_t size() const override { return static_cast<std::int64_t>(tokens_.size()); }
  void read(std::int64_t offset, std::span<std::int32_t> out) override {
    check(offset >= 0 && offset + static_cast<std::int64_t>(out.size()) <= size(), "read within the stream");
    std::copy_n(tokens_.begin() + offset, out.size(), out.begin());
  }

 private:
  std::vector<std::int32_t> tokens_;
};

class FileStream final : public TokenStream {
 public:
  explicit FileStream(TokenFile file) : file_(std::move(file)) {}
  std::int64_t size() const override { return file_.size(); }
  void read(std::int64_t offset, std::span<std::int32_t> out) override { file_.read(offset, out); }

 private:
  TokenFile file_;
};

class JoinedStream final : public TokenStream {
 public:
  explicit JoinedStream(std::vector<std::unique_ptr<TokenStream>> parts) : parts_(std::move(parts)) {
    for (const auto& part : parts_) {
      begins_.push_back(size_);
      size_ += part->size();
    }
  }
  std::int64_t size() const override { return size_; }
  void read(std::int64_t offset, std::span<std::int32_t> out) override {
    check(offset >= 0 && offset + static_cast<std::int64_t>(out.size()) <= size(), "read within the stream");
    while (!out.empty()) {
      const auto next = std::upper_bound(begins_.begin(), begins_.end(), offset);
      const auto part = static_cast<std::size_t>(next - begins_.begin() - 1);
      const std::int64_t within = offset - begins_[part];
      const auto count = static_cast<std::size_t>(
          std::min(parts_[part]->size() - within, static_cast<std::int64_t>(out.size())));
      parts_[part]->read(within, out.first(count));
      out = out.subspan(count);
      offset += static_cast<std::int64_t>(count);
    }
  }

 private:
  std::vector<std::unique_ptr<TokenStream>> parts_;
  std::vector<std::int64_t> begins_;
  std::int64_t size_ = 0;
};

bool is_hdf5(std::span<const std::byte> bytes) {
  constexpr std::string_view kSignature = "\x89HDF\r\n\x1a\n";
  if (bytes.size() < kSignature.size()) return false;
  return std::equal(kSignature.begin(), kSignature.end(), reinterpret_cast<const char*>(bytes.data()));
}

std::unique_ptr<TokenStream> open_one(const std::string& path, const Tokenizer& tokenizer,
                                      std::int64_t vocab_size) {
  if (!is_hdf5(MappedFile::open(path).bytes()))
    return memory_stream(encode_file(path, tokenizer, false, vocab_size));
  TokenFile file = TokenFile::open(path);
  require(file.vocab_size() <= vocab_size,
          "{}: made for a vocabulary of {}, but the model's embedding has {} rows: pack the "
          "text again with the model's tokenizer",
          path, file.vocab_size(), vocab_size);
  require(
      file.tokenizer_hash() == tokenizer_fingerprint(tokenizer),
      "{}: made with another tokenizer ({} there, {} here): pack the text again with the model's tokenizer",
      path, file.tokenizer_hash(), tokenizer_fingerprint(tokenizer));
  return std::make_unique<FileStream>(std::move(file));
}

}  // namespace

std::unique_ptr<TokenStream> memory_stream(std::vector<std::int32_t> tokens) {
  return std::make_unique<MemoryStream>(std::move(tokens));
}

std::unique_ptr<TokenStream> open_token_stream(const std::vector<std::string>& files,
                                               const Tokenizer& tokenizer, std::int64_t vocab_size) {
  std::vector<std::unique_ptr<TokenStream>> parts;
  for (const std::string& file : files) parts.push_back(open_one(file, tokenizer, vocab_size));
  require(!parts.empty(), "no data files are given");
  if (parts.size() == 1) return std::move(parts.front());
  return std::make_unique<JoinedStream>(std::move(parts));
}

std::vector<std::int32_t> encode_file(const std::string& path, const Tokenizer& tokenizer,
                                      bool add_special_tokens, std::int64_t vocab_size) {
  const MappedFile file = MappedFile::open(path);
  require(!file.bytes().empty(), "{}: the file is empty: give a text", path);
  require(!is_hdf5(file.bytes()), "{}: an HDF5 file, not a text: give the text that it was made from", path);
  const std::string_view text(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
  std::vector<std::int32_t> ids = tokenizer.encode(text, add_special_tokens);
  const auto bad =
      std::find_if(ids.begin(), ids.end(), [&](std::int32_t id) { return id < 0 || id >= vocab_size; });
  require(bad == ids.end(),
          "{}: the tokenizer gives id {}, but the model's embedding has {} rows: tokenizer.json belongs to "
          "another model",
          path, bad == ids.end() ? 0 : *bad, vocab_size);
  return ids;
}

std::string tokenizer_fingerprint(const Tokenizer& tokenizer) {
  const auto ids = tokenizer.encode("The quick brown fox, 1234567890! \xC3\xA9\xE4\xB8\xAD\n\tdon't", false);
  Xxh3 hash;
  const std::int64_t size = tokenizer.vocab_size();
  hash.update(std::as_bytes(std::span(&size, 1)));
  hash.update(std::as_bytes(std::span(ids)));
  return checksum_text(hash.digest());
}

}  // namespace ridge
