// The raw form of WikiText-2 and WikiText-103 (Merity et al. 2016): lines of text between " = Title = "
// headings.
#pragma once

#include <cstdint>
#include <string_view>

namespace ridge {

struct WikiTextStats {
  std::int64_t lines = 0;
  std::int64_t headings = 0;  // of every level
  std::int64_t articles = 0;  // headings of the first level
};

/// Counts what a wiki.*.raw or wiki.*.tokens file holds. A UserError that names `source_name` where the bytes
/// are not such a file: not UTF-8, NUL bytes, or no heading of an article before the first text.
WikiTextStats check_wikitext(std::string_view bytes, std::string_view source_name);

}  // namespace ridge
