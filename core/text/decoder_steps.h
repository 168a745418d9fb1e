// The steps a decoder is made of.
#pragma once

#include <memory>

#include "core/text/decoder.h"
#include "core/text/tokenizer_match.h"

namespace ridge {

std::unique_ptr<DecodeStep> decode_byte_level();
std::unique_ptr<DecodeStep> decode_byte_fallback();
std::unique_ptr<DecodeStep> decode_fuse();
std::unique_ptr<DecodeStep> decode_replace(std::unique_ptr<Matcher> pattern, std::string content);
/// Cuts at most `start` and `stop` copies of one character off the ends of each token.
std::unique_ptr<DecodeStep> decode_strip(std::string symbol, std::size_t start, std::size_t stop);
/// The symbol becomes a space, or nothing in the first token where `drop_first`.
std::unique_ptr<DecodeStep> decode_metaspace(std::string symbol, bool drop_first);

}  // namespace ridge
