#include "core/text/bpe_trainer.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <queue>
#include <span>
#include <unordered_map>

#include "core/base/error.h"
#include "core/text/byte_alphabet.h"
#include "core/text/pretokenizer.h"
#include "core/text/tokenizer_added.h"
#include "core/text/utf8.h"

namespace ridge {
namespace {

using nlohmann::ordered_json;

struct Word {
  std::vector<std::int32_t> symbols;
  std::int64_t count = 0;
};

ordered_json byte_level_step() {
  return {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", true}};
}

// Raw words with their counts, sorted: hash order must not show.
std::vector<std::pair<std::string, std::int64_t>> count_words(
    std::string_view text, const std::vector<std::string>& special_tokens) {
  AddedTokenFinder specials;
  for (const std::string& content : special_tokens) specials.add(AddedToken{.content = content}, content);
  const nlohmann::json step = byte_level_step();
  const PreTokenizers pretokenizers(JsonNode(step, "the trainer's pre-tokenizer"));
  std::unordered_map<std::string, std::int64_t> counts;
  const std::string escaped = utf8::is_valid(text) ? std::string() : utf8::escape_invalid(text);
  const std::string_view source = escaped.empty() ? text : std::string_view(escaped);
  specials.scan(source, true, [&](std::size_t begin, std::size_t end, std::int32_t id) {
    if (id != Vocabulary::kNone) return;
    pretokenizers.split({source.substr(begin, end - begin), false},
                        [&](Piece piece) { ++counts[std::string(piece.text)]; });
  });
  std::vector<std::pair<std::string, std::int64_t>> out(counts.begin(), counts.end());
  std::sort(out.begin(), out.end());
  return out;
}

class Trainer {
 public:
  Trainer(const std::vector<std::string>& special_tokens, std::size_t vocab_size) : vocab_size_(vocab_size) {
    for (const std::string& content : special_tokens) add_token(content);
    std::vector<char32_t> alphabet;
    for (unsigned byte = 0; byte < 256; ++byte)
      alphabet.push_back(byte_symbol(static_cast<unsigned char>(byte)));
    std::sort(alphabet.begin(), alphabet.end());
    for (const char32_t symbol : alphabet) {
      std::string token;
      utf8::append(token, symbol);
      byte_ids_[static_cast<std::size_t>(symbol_byte(symbol))] = add_token(token);
    }
  }

  void train(const std::vector<std::pair<std::string, std::int64_t>>& words) {
    count_pairs(words);
    while (tokens_.size() < vocab_size_ && !queue_.empty()) {
      Candidate best = queue_.top();
      queue_.pop();
      if (const std::int64_t count = pair_counts_[best.pair]; count != best.count) {
        best.count = count;
        queue_.push(std::move(best));
        continue;
      }
      if (best.count < 1) break;
      merge(best);
    }
  }

  const std::vector<std::string>& tokens() const { return tokens_; }
  const std::vector<std::pair<std::string, std::string>>& merges() const { return merges_; }

 private:
  using Pair = std::pair<std::int32_t, std::int32_t>;
  struct PairHash {
    std::size_t operator()(const Pair& p) const {
      return static_cast<std::size_t>(
          pack_pair(static_cast<std::uint32_t>(p.first), static_cast<std::uint32_t>(p.second)) *
              0x9E3779B97F4A7C15ull >>
          16);
    }
  };
  struct Candidate {
    std::int64_t count;
    Pair pair;
    std::vector<std::uint32_t> words;               // where the pair stands, ascending
    bool operator<(const Candidate& other) const {  // the queue's top is the greatest
      return count != other.count ? count < other.count : pair > other.pair;
    }
  };
  using Places = std::unordered_map<Pair, std::vector<std::uint32_t>, PairHash>;

  std::int32_t add_token(const std::string& token) {
    const auto [at, is_new] = ids_.emplace(token, static_cast<std::int32_t>(tokens_.size()));
    if (is_new) tokens_.push_back(token);
    return at->second;
  }

  void count_pairs(const std::vector<std::pair<std::string, std::int64_t>>& words) {
    Places places;
    for (const auto& [text, count] : words) {
      Word word{{}, count};
      for (const char c : utf8::unescape(text))
        word.symbols.push_back(byte_ids_[static_cast<unsigned char>(c)]);
      for (std::size_t i = 0; i + 1 < word.symbols.size(); ++i) {
        change({word.symbols[i], word.symbols[i + 1]}, count, static_cast<std::uint32_t>(words_.size()),
               places);
      }
      words_.push_back(std::move(word));
    }
    push(places);
  }

  // A word that gains a pair becomes one of its places.
  void change(const Pair& pair, std::int64_t by, std::uint32_t word, Places& places) {
    pair_counts_[pair] += by;
    if (by < 0) return;
    std::vector<std::uint32_t>& list = places[pair];
    if (list.empty() || list.back() != word) list.push_back(word);
  }

  void push(Places& places) {
    for (auto& [pair, list] : places) {
      const std::int64_t count = pair_counts_[pair];
      if (count > 0) queue_.push({count, pair, std::move(list)});
    }
  }

  void merge(const Candidate& best) {
    const auto& [left, right] = best.pair;
    const std::string left_token = tokens_[static_cast<std::size_t>(left)];
    const std::string right_token = tokens_[static_cast<std::size_t>(right)];
    const std::int32_t merged = add_token(left_token + right_token);
    merges_.emplace_back(left_token, right_token);
    Places places;
    for (const std::uint32_t word : best.words) merge_in(word, best.pair, merged, places);
    push(places);
  }

  void merge_in(std::uint32_t index, const Pair& pair, std::int32_t merged, Places& places) {
    Word& word = words_[index];
    std::vector<std::int32_t> out;
    out.reserve(word.symbols.size());
    for (std::size_t i = 0; i < word.symbols.size(); ++i) {
      const std::int32_t symbol = word.symbols[i];
      if (i + 1 == word.symbols.size() || symbol != pair.first || word.symbols[i + 1] != pair.second) {
        out.push_back(symbol);
        continue;
      }
      if (!out.empty()) {
        change({out.back(), pair.first}, -word.count, index, places);
        change({out.back(), merged}, word.count, index, places);
      }
      if (i + 2 < word.symbols.size()) {
        change({pair.second, word.symbols[i + 2]}, -word.count, index, places);
        change({merged, word.symbols[i + 2]}, word.count, index, places);
      }
      out.push_back(merged);
      ++i;
    }
    word.symbols = std::move(out);
  }

  std::size_t vocab_size_;
  std::array<std::int32_t, 256> byte_ids_{};
  std::vector<std::string> tokens_;  // by id
  std::unordered_map<std::string, std::int32_t> ids_;
  std::vector<std::pair<std::string, std::string>> merges_;
  std::vector<Word> words_;
  std::unordered_map<Pair, std::int64_t, PairHash> pair_counts_;
  std::priority_queue<Candidate> queue_;
};

void check_arguments(int vocab_size, const std::vector<std::string>& special_tokens) {
  const std::size_t least = 256 + special_tokens.size();
  require(vocab_size >= 0 && static_cast<std::size_t>(vocab_size) >= least,
          "a byte-level vocabulary of {} tokens is too small; with {} special tokens it needs {} at least",
          vocab_size, special_tokens.size(), least);
  std::vector<std::string> sorted = special_tokens;
  std::sort(sorted.begin(), sorted.end());
  for (std::size_t i = 0; i < sorted.size(); ++i) {
    require(utf8::is_valid(sorted[i]) && !sorted[i].empty(),
            "special token {} must be UTF-8 text, and not empty", in_quotes(sorted[i]));
    require(i == 0 || sorted[i] != sorted[i - 1], "special token {} is given twice", in_quotes(sorted[i]));
    require(!utf8::is_one_code_point(sorted[i]) || symbol_byte(utf8::decode(sorted[i].data()).value) < 0,
            "special token {} is the symbol of a byte; use a longer one", in_quotes(sorted[i]));
  }
}

ordered_json added_tokens_json(const std::vector<std::string>& special_tokens) {
  ordered_json out = ordered_json::array();
  for (const std::string& content : special_tokens) {
    out.push_back({{"id", out.size()},
                   {"content", content},
                   {"single_word", false},
                   {"lstrip", false},
                   {"rstrip", false},
                   {"normalized", false},
                   {"special", true}});
  }
  return out;
}

ordered_json model_json(const Trainer& trainer) {
  ordered_json vocab = ordered_json::object(), merges = ordered_json::array();
  std::size_t id = 0;
  auto& entries = vocab.get_ref<ordered_json::object_t&>();
  for (const std::string& token : trainer.tokens())
    entries.emplace_back(token, id++);  // known to be distinct
  for (const auto& [left, right] : trainer.merges()) merges.push_back({left, right});
  return {{"type", "BPE"},
          {"dropout", nullptr},
          {"unk_token", nullptr},
          {"continuing_subword_prefix", nullptr},
          {"end_of_word_suffix", nullptr},
          {"fuse_unk", false},
          {"byte_fallback", false},
          {"ignore_merges", false},
          {"vocab", std::move(vocab)},
          {"merges", std::move(merges)}};
}

}  // namespace

std::string train_byte_level_bpe(std::string_view text, int vocab_size,
                                 const std::vector<std::string>& special_tokens) {
  check_arguments(vocab_size, special_tokens);
  Trainer trainer(special_tokens, static_cast<std::size_t>(vocab_size));
  trainer.train(count_words(text, special_tokens));
  const ordered_json file = {{"version", "1.0"},
                             {"truncation", nullptr},
                             {"padding", nullptr},
                             {"added_tokens", added_tokens_json(special_tokens)},
                             {"normalizer", nullptr},
                             {"pre_tokenizer", byte_level_step()},
                             {"post_processor", byte_level_step()},
                             {"decoder", byte_level_step()},
                             {"model", model_json(trainer)}};
  return file.dump(1);
}

}  // namespace ridge
