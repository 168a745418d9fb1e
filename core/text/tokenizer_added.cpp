#include "core/text/tokenizer_added.h"

#include <algorithm>

#include "core/text/utf8.h"

namespace ridge {
namespace {

bool word_before(std::string_view text) {
  return !text.empty() && utf8::is_word(utf8::decode_last(text).value);
}

bool word_after(std::string_view text) {
  return !text.empty() && utf8::is_word(utf8::decode(text.data()).value);
}

// Where the white space at the end of the text begins.
std::size_t trailing_space(std::string_view text) {
  while (!text.empty()) {
    const auto [value, bytes] = utf8::decode_last(text);
    if (!utf8::is_space(value)) break;
    text.remove_suffix(bytes);
  }
  return text.size();
}

std::size_t leading_space(std::string_view text) {
  std::size_t at = 0;
  while (at < text.size()) {
    const auto [value, bytes] = utf8::decode(text.data() + at);
    if (!utf8::is_space(value)) break;
    at += bytes;
  }
  return at;
}

}  // namespace

void AddedTokenFinder::add(const AddedToken& token, std::string_view pattern) {
  if (pattern.empty()) return;
  std::uint32_t node = 0;
  for (const char c : pattern) {
    const std::uint64_t key = pack_pair(node, static_cast<unsigned char>(c));
    if (const std::uint32_t* next = edges_.find(key)) {
      node = *next;
      continue;
    }
    node = static_cast<std::uint32_t>(ends_.size());
    ends_.push_back(-1);
    edges_.assign(key, node);
  }
  if (ends_[node] >= 0) return;
  ends_[node] = static_cast<std::int32_t>(tokens_.size());
  tokens_.push_back(token);
  first_[static_cast<unsigned char>(pattern[0])] = true;
}

AddedTokenFinder::Found AddedTokenFinder::longest_at(std::string_view text, std::size_t at) const {
  Found found;
  std::uint32_t node = 0;
  for (std::size_t i = at; i < text.size(); ++i) {
    const std::uint32_t* next = edges_.find(pack_pair(node, static_cast<unsigned char>(text[i])));
    if (!next) break;
    node = *next;
    if (ends_[node] >= 0) found = {at, i + 1, &tokens_[static_cast<std::size_t>(ends_[node])]};
  }
  return found;
}

AddedTokenFinder::Found AddedTokenFinder::find(std::string_view text, std::size_t from) const {
  for (std::size_t at = from; at < text.size(); ++at) {
    if (!first_[static_cast<unsigned char>(text[at])]) continue;
    if (const Found found = longest_at(text, at); found.token) return found;
  }
  return {};
}

void AddedTokenFinder::scan(std::string_view text, bool find_special, const AddedSink& sink) const {
  std::size_t done = 0;
  for (Found found; (found = find(text, found.end)).token;) {
    const AddedToken& token = *found.token;
    std::size_t begin = found.begin, end = found.end;
    if (token.special && !find_special) continue;
    if (token.single_word && (word_before(text.substr(0, begin)) || word_after(text.substr(end)))) continue;
    if (token.lstrip) begin = std::max(trailing_space(text.substr(0, begin)), done);
    if (token.rstrip) end += leading_space(text.substr(end));
    if (done < begin) sink(done, begin, Vocabulary::kNone);
    sink(begin, end, token.id);
    done = end;
  }
  if (done < text.size()) sink(done, text.size(), Vocabulary::kNone);
}

}  // namespace ridge
