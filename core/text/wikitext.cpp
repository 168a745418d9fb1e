#include "core/text/wikitext.h"

#include "core/base/error.h"
#include "core/text/utf8.h"

namespace ridge {
namespace {

bool is_blank(char c) { return c == ' ' || c == '\t' || c == '\r'; }

std::string_view trimmed(std::string_view line) {
  while (!line.empty() && is_blank(line.front())) line.remove_prefix(1);
  while (!line.empty() && is_blank(line.back())) line.remove_suffix(1);
  return line;
}

// " = Title = " is of level 1, " = = Section = = " of level 2; 0: no heading.
int heading_level(std::string_view line) {
  int level = 0;
  for (line = trimmed(line); line.size() > 4 && line.starts_with("= ") && line.ends_with(" ="); ++level) {
    line = trimmed(line.substr(1, line.size() - 2));
  }
  return level;
}

// Without its newline.
std::string_view line_at(std::string_view bytes, std::size_t begin) {
  return bytes.substr(begin, bytes.find('\n', begin) - begin);
}

}  // namespace

WikiTextStats check_wikitext(std::string_view bytes, std::string_view source_name) {
  require(utf8::is_valid(bytes) && bytes.find('\0') == std::string_view::npos,
          "{}: not a WikiText file: {} bytes that are not UTF-8 text; unpack the archive first", source_name,
          bytes.size());
  WikiTextStats stats;
  bool after_blank = true;
  for (std::size_t begin = 0; begin < bytes.size();) {
    const std::string_view line = line_at(bytes, begin);
    begin += line.size() + 1;
    // Formulas of the text look like headings too, but do not stand alone.
    const bool before_blank = begin >= bytes.size() || trimmed(line_at(bytes, begin)).empty();
    const int level = after_blank && before_blank ? heading_level(line) : 0;
    after_blank = trimmed(line).empty();
    stats.headings += level > 0;
    stats.articles += level == 1;
    ++stats.lines;
    require(
        stats.articles > 0 || after_blank,
        "{}: not a WikiText file: line {} comes before the first heading, which looks like \" = Title = \"",
        source_name, stats.lines);
  }
  require(stats.articles > 0, "{}: not a WikiText file: no heading like \" = Title = \" in {} lines",
          source_name, stats.lines);
  return stats;
}

}  // namespace ridge
