// The `model` of a tokenizer.json: vocabulary and merges.
#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>

#include "core/base/error.h"
#include "core/text/tokenizer_state.h"

namespace ridge {
namespace {

using nlohmann::json;

// Ids index arrays, so the file's own size bounds them: an entry takes more than one byte of it.
std::int64_t highest_id(std::size_t file_bytes) {
  constexpr std::size_t kLeast = 65536, kMost = std::numeric_limits<std::int32_t>::max() - 1;
  return static_cast<std::int64_t>(std::clamp(file_bytes, kLeast, kMost));
}

// An entry of the vocabulary, for its message.
JsonNode entry(const JsonNode& vocab, const json::const_iterator& at) {
  return {*at, vocab.source(), fmt::format("{}[{}]", vocab.path(), in_quotes(at.key()))};
}

std::int64_t read_id(const JsonNode& vocab, const json::const_iterator& at, std::int64_t highest) {
  if (at->is_number_unsigned()) {
    const auto id = at->get<std::uint64_t>();
    if (id <= static_cast<std::uint64_t>(highest)) return static_cast<std::int64_t>(id);
  }
  return entry(vocab, at).as_integer(0, highest);
}

Vocabulary parse_vocabulary(const JsonNode& vocab, std::size_t file_bytes) {
  const json& object = vocab.as_object();
  const std::int64_t bound = highest_id(file_bytes);
  std::int64_t highest = -1;
  std::vector<std::pair<json::const_iterator, std::int32_t>> entries;  // one walk: the tree is cold memory
  entries.reserve(object.size());
  for (auto at = object.begin(); at != object.end(); ++at) {
    const std::int64_t id = read_id(vocab, at, bound);
    entries.emplace_back(at, static_cast<std::int32_t>(id));
    highest = std::max(highest, id);
  }
  if (highest < 0) vocab.fail("the vocabulary is empty");
  Vocabulary out(static_cast<std::size_t>(highest) + 1, entries.size());
  for (const auto& [at, id] : entries) {
    if (out.add(at.key(), id)) continue;
    entry(vocab, at).fail(
        fmt::format("id {} is also that of {}; ids must differ", id, in_quotes(out.token(id))));
  }
  return out;
}

class MergeReader {
 public:
  MergeReader(const JsonNode& list, const Vocabulary& vocabulary) : list_(list), vocabulary_(vocabulary) {}

  std::vector<Merge> read() {
    std::vector<Merge> out;
    out.reserve(list_.as_array().size());
    for (const json& item : list_.value()) {
      const bool is_version = item.is_string() && item.get_ref<const std::string&>().starts_with("#version");
      if (!is_version) out.push_back(parse(item));
      ++index_;
    }
    return out;
  }

 private:
  // "a b" or ["a", "b"]
  Merge parse(const json& item) {
    if (item.is_string()) return parse_line(item.get_ref<const std::string&>());
    if (!item.is_array() || item.size() != 2 || !item[0].is_string() || !item[1].is_string()) {
      fail("expected \"a b\" or [\"a\", \"b\"]");
    }
    return join(item[0].get_ref<const std::string&>(), item[1].get_ref<const std::string&>());
  }

  Merge parse_line(std::string_view line) {
    const std::size_t space = line.find(' ');
    if (space == std::string_view::npos || line.find(' ', space + 1) != std::string_view::npos) {
      fail("expected two tokens with one space between, found " + in_quotes(line));
    }
    return join(line.substr(0, space), line.substr(space + 1));
  }

  Merge join(std::string_view left, std::string_view right) {
    joined_.assign(left).append(right);
    return {find(left), find(right), find(joined_)};
  }

  std::int32_t find(std::string_view token) const {
    const std::int32_t id = vocabulary_.find(token);
    if (id == Vocabulary::kNone)
      fail("needs the token " + in_quotes(token) + ", which is not in model.vocab");
    return id;
  }

  [[noreturn]] void fail(std::string_view reason) const {
    list_.fail(fmt::format("entry {}: {}", index_, reason));
  }

  const JsonNode& list_;
  const Vocabulary& vocabulary_;
  std::string joined_;
  std::size_t index_ = 0;
};

void refuse_unsupported(const JsonNode& model) {
  // Files of old writers have no type.
  const std::string type = model.text("type", model.has("merges") ? "BPE" : "");
  if (type != "BPE") model.unsupported("type", type, "BPE");
  if (model.has("dropout") && model.at("dropout").value() != 0) {
    model.unsupported("dropout", model.at("dropout").value().dump(), "null, 0");
  }
  for (const char* affix : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    const std::string text = model.text(affix, "");
    if (!text.empty()) model.unsupported(affix, text, "null, \"\"");
  }
}

}  // namespace

Bpe parse_bpe(const JsonNode& model, std::size_t file_bytes) {
  refuse_unsupported(model);
  Vocabulary vocabulary = parse_vocabulary(model.at("vocab"), file_bytes);
  const JsonNode list = model.at("merges");
  const std::vector<Merge> merges = MergeReader(list, vocabulary).read();
  BpeOptions options;
  if (model.has("unk_token")) options.unk_token = model.text("unk_token");
  options.fuse_unk = model.flag("fuse_unk", false);
  options.byte_fallback = model.flag("byte_fallback", false);
  options.ignore_merges = model.flag("ignore_merges", false);
  return {std::move(vocabulary), merges, std::move(options)};
}

}  // namespace ridge
