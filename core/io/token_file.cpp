#include "core/io/token_file.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <limits>
#include <string_view>
#include <utility>

#include "core/base/error.h"
#include "core/io/quote.h"
#include "core/io/slab.h"

namespace ridge {
namespace {

constexpr const char* kDataset = "tokens";
constexpr std::int64_t kVersion = 1;
// 2 MiB: larger than HDF5's chunk cache, so that a small read takes its own bytes and not the chunk.
constexpr std::int64_t kChunkTokens = 512 << 10;
constexpr std::size_t kBufferTokens = 1 << 20;
constexpr std::int64_t kAheadTokens = 64 << 10;
constexpr std::int64_t kMaxVocab = std::numeric_limits<std::int32_t>::max();

// The place of the first id that is not in [0, vocab_size), or tokens.size().
std::size_t find_bad_id(std::span<const std::int32_t> tokens, std::int64_t vocab_size) {
  const auto limit = static_cast<std::uint32_t>(vocab_size);
  const auto bad = [&](std::int32_t id) { return static_cast<std::uint32_t>(id) >= limit; };
  return static_cast<std::size_t>(std::ranges::find_if(tokens, bad) - tokens.begin());
}

void check_ids(std::span<const std::int32_t> tokens, std::int64_t vocab_size, std::int64_t first,
               const std::string& path) {
  const std::size_t bad = find_bad_id(tokens, vocab_size);
  if (bad == tokens.size()) return;
  fail_user(
      "token file '{}': token {} is id {}, but the vocabulary has {} ids: was it made with another "
      "tokenizer?",
      path, first + static_cast<std::int64_t>(bad), tokens[bad], vocab_size);
}

std::vector<std::string> lines_of(std::string_view text) {
  std::vector<std::string> lines;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    lines.emplace_back(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return lines;
}

void check_format(const Hdf5File& file) {
  const std::string& path = file.path();
  require(file.has_attribute("/", "ridge_format"),
          "'{}' is not a token file: it has no attribute ridge_format", path);
  const std::string format = file.string_attribute("/", "ridge_format");
  require(format == "tokens", "'{}' is not a token file: its ridge_format is {}", path, shown(format));
  const std::int64_t version = file.int_attribute("/", "version");
  require(version == kVersion, "token file '{}' has version {}; this program reads version {}", path, version,
          kVersion);
}

}  // namespace

TokenFileWriter::TokenFileWriter(const std::string& path, std::int64_t vocab_size,
                                 const std::string& tokenizer_hash, std::span<const std::string> sources)
    : target_(path), file_(Hdf5File::create(target_.temporary_path())), vocab_size_(vocab_size) {
  require(vocab_size > 0 && vocab_size <= kMaxVocab,
          "token file '{}': a vocabulary of {} ids is not between 1 and {}", path, vocab_size, kMaxVocab);
  file_.create_growing(kDataset, DType::i32, kChunkTokens);
  file_.set_attribute("/", "ridge_format", "tokens");
  file_.set_attribute("/", "version", kVersion);
  file_.set_attribute("/", "vocab_size", vocab_size);
  file_.set_attribute("/", "tokenizer", tokenizer_hash);
  file_.set_attribute("/", "sources", fmt::format("{}", fmt::join(sources, "\n")));
}

void TokenFileWriter::append(std::span<const std::int32_t> tokens) {
  check_ids(tokens, vocab_size_, count_, target_.path());
  buffer_.insert(buffer_.end(), tokens.begin(), tokens.end());
  count_ += static_cast<std::int64_t>(tokens.size());
  if (buffer_.size() >= kBufferTokens) flush();
}

void TokenFileWriter::flush() {
  file_.append(kDataset, DType::i32, std::as_bytes(std::span(buffer_)));
  buffer_.clear();
}

void TokenFileWriter::finish() {
  flush();
  file_.set_attribute("/", "count", count_);
  file_.close();
  target_.commit();
}

TokenFile::TokenFile(Hdf5File file) : file_(std::move(file)) {}

TokenFile TokenFile::open(const std::string& path) {
  TokenFile tokens(Hdf5File::open(path));
  const Hdf5File& file = tokens.file_;
  check_format(file);
  const DatasetInfo info = file.info(kDataset);
  require(info.dtype == DType::i32 && info.dims.size() == 1,
          "token file '{}': its tokens are {} {}, not a list of i32", path, name_of(info.dtype),
          dims_text(info.dims));
  const std::int64_t count = file.int_attribute("/", "count");
  require(count == info.dims[0], "token file '{}' says that it has {} tokens, but holds {}", path, count,
          info.dims[0]);
  tokens.size_ = count;
  tokens.vocab_size_ = file.int_attribute("/", "vocab_size");
  require(tokens.vocab_size_ > 0 && tokens.vocab_size_ <= kMaxVocab,
          "token file '{}': its vocab_size {} is not between 1 and {}", path, tokens.vocab_size_, kMaxVocab);
  tokens.tokenizer_hash_ = file.string_attribute("/", "tokenizer");
  tokens.sources_ = lines_of(file.string_attribute("/", "sources"));
  return tokens;
}

void TokenFile::load(std::int64_t offset, std::span<std::int32_t> out) const {
  file_.read_rows(kDataset, DType::i32, offset, static_cast<std::int64_t>(out.size()),
                  std::as_writable_bytes(out));
  check_ids(out, vocab_size_, offset, path());
}

void TokenFile::read(std::int64_t offset, std::span<std::int32_t> out) {
  const auto count = static_cast<std::int64_t>(out.size());
  if (offset < 0 || offset > size_ || count > size_ - offset) {
    fail("token file '{}' has {} tokens: {} from {} on are not in it", path(), size_, count, offset);
  }
  const bool sequential = offset == std::exchange(last_end_, offset + count);
  const auto cached = [&] {
    return offset >= ahead_begin_ &&
           offset + count <= ahead_begin_ + static_cast<std::int64_t>(ahead_.size());
  };
  if (!cached()) {
    if (!sequential || count >= kAheadTokens) return load(offset, out);
    ahead_.resize(static_cast<std::size_t>(std::min(kAheadTokens, size_ - offset)));
    ahead_begin_ = offset;
    load(offset, ahead_);
  }
  std::copy_n(ahead_.begin() + (offset - ahead_begin_), count, out.begin());
}

}  // namespace ridge
