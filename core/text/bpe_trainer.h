// Trains a byte-level BPE tokenizer (GPT-2, Radford et al. 2019) on a text.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace ridge {

/// Contents of a tokenizer.json. Ids: the special tokens in order, the 256 byte symbols by code point, then
/// one token a merge. The next merge is the most frequent pair, of equals the one with the lowest ids: the
/// same text gives the same file. Ends before `vocab_size` tokens where no pair is left. Special tokens in
/// the text separate words. UserError: `vocab_size` below 256 and the special tokens; an empty or doubled
/// special token, or one that is a single byte symbol.
std::string train_byte_level_bpe(std::string_view text, int vocab_size,
                                 const std::vector<std::string>& special_tokens);

}  // namespace ridge
