// Added tokens: contents that are found in the text before, or after, normalization and never cut.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "core/text/tokenizer_map.h"

namespace ridge {

struct AddedToken {
  std::int32_t id = 0;
  std::string content{};
  std::string spelling{};    // what it decodes to: the content, normalized where the token is
  bool single_word = false;  // not beside word characters
  bool lstrip = false;       // takes in the white space before it
  bool rstrip = false;       // takes in the white space after it
  bool normalized = false;   // sought in normalized text
  bool special = false;      // left out by decode, and by ordinary encoding
};

/// Receives consecutive ranges of the text: an added token's (with its id), or plain text (id kNone).
using AddedSink = std::function<void(std::size_t begin, std::size_t end, std::int32_t id)>;

/// Finds the longest of a set of contents at the leftmost place, again and again.
class AddedTokenFinder {
 public:
  /// `pattern`: what to look for in place of the token's content. Of equal patterns the first stays.
  void add(const AddedToken& token, std::string_view pattern);

  /// `find_special` false: special tokens are passed over as plain text.
  void scan(std::string_view text, bool find_special, const AddedSink& sink) const;

  bool empty() const { return tokens_.empty(); }

 private:
  struct Found {
    std::size_t begin = 0, end = 0;
    const AddedToken* token = nullptr;
  };
  Found find(std::string_view text, std::size_t from) const;
  Found longest_at(std::string_view text, std::size_t at) const;

  std::vector<AddedToken> tokens_;
  std::vector<std::int32_t> ends_{-1};  // [nodes] index of the token that ends in a node of the trie
  PairMap<std::uint32_t> edges_;        // (node, byte) -> node
  std::array<bool, 256> first_{};       // bytes that begin a pattern
};

}  // namespace ridge
