// Cutting a piece at the matches of a pattern.
#pragma once

#include <memory>

#include "core/text/pretokenizer.h"
#include "core/text/tokenizer_match.h"

namespace ridge {

/// What becomes of a match: dropped, a piece of its own, joined to the piece before or after it where that is
/// no match, or joined to the matches beside it.
enum class SplitBehavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };

/// `invert`: what the pattern does not match counts as a match, and the other way round.
std::unique_ptr<PreTokenizer> make_split(std::unique_ptr<Matcher> pattern, SplitBehavior behavior,
                                         bool invert);

}  // namespace ridge
