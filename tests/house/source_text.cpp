// Reading sources: the tree, code without comments and strings, function definitions.
#include <algorithm>
#include <cctype>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "tests/house/rules.h"

namespace ridge::house {
namespace {

constexpr std::string_view kFolders[] = {".ci",   "core",      "kernels", "parallel",    "optim", "lora",
                                         "quant", "inference", "launch",  "experiments", "tests", "docs"};
constexpr std::string_view kExtensions[] = {".h",     ".cpp", ".cu",  ".cuh",  ".py", ".proto",
                                            ".cmake", ".md",  ".txt", ".yaml", ".sh", ""};

bool is_word(char c) { return std::isalnum(static_cast<unsigned char>(c)) || c == '_'; }

// Blanks what is not code, one state at a time.
class Blanker {
 public:
  explicit Blanker(std::string_view text) : text_(text) {}

  std::string run() {
    while (at_ < text_.size()) {
      if (looking_at("//")) {
        blank_to("\n", 0);
      } else if (looking_at("/*")) {
        blank_to("*/", 2);
      } else if (looking_at("R\"") && !after_word()) {
        blank_raw_string();
      } else if (text_[at_] == '"' || (text_[at_] == '\'' && !after_word())) {
        blank_quoted(text_[at_]);
      } else {
        out_ += text_[at_++];
      }
    }
    return out_;
  }

 private:
  bool looking_at(std::string_view what) const { return text_.substr(at_, what.size()) == what; }
  bool after_word() const { return at_ > 0 && is_word(text_[at_ - 1]); }
  void blank(std::size_t count) {
    for (; count > 0 && at_ < text_.size(); --count, ++at_) out_ += text_[at_] == '\n' ? '\n' : ' ';
  }
  void blank_to(std::string_view end, std::size_t beyond) {
    const std::size_t found = text_.find(end, at_ + 2);
    blank(found == std::string_view::npos ? text_.size() : found + beyond - at_);
  }
  void blank_raw_string() {
    const std::size_t open = std::min(text_.find('(', at_), text_.size());
    const std::string close = ")" + std::string(text_.substr(at_ + 2, open - at_ - 2)) + "\"";
    blank_to(close, close.size());
  }
  void blank_quoted(char quote) {
    blank(1);
    while (at_ < text_.size() && text_[at_] != quote && text_[at_] != '\n') blank(text_[at_] == '\\' ? 2 : 1);
    if (at_ < text_.size() && text_[at_] == quote) blank(1);
  }

  std::string_view text_;
  std::size_t at_ = 0;
  std::string out_;
};

std::string read_file(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return (std::stringstream() << file.rdbuf()).str();
}

bool has_word(std::string_view text, std::string_view word) {
  for (std::size_t at = text.find(word); at != std::string_view::npos; at = text.find(word, at + 1)) {
    const bool begins = at == 0 || !is_word(text[at - 1]);
    const bool ends = at + word.size() == text.size() || !is_word(text[at + word.size()]);
    if (begins && ends) return true;
  }
  return false;
}

// "a = b" outside parentheses, apart from operators' names: an initialiser, not a function.
bool has_assignment(std::string_view statement) {
  int depth = 0;
  for (std::size_t i = 0; i < statement.size(); ++i) {
    depth += (statement[i] == '(') - (statement[i] == ')');
    if (depth == 0 && statement.substr(i, 3) == " = ") return true;
  }
  return false;
}

enum class Brace { scope, function, other };

// What an opening brace begins, told from the statement before it. clang-format puts a blank before a body's
// brace and none before an initialiser's.
Brace kind_of(std::string_view statement) {
  if (statement.empty() || !std::isspace(static_cast<unsigned char>(statement.back()))) return Brace::other;
  if (has_assignment(statement)) return Brace::other;
  const std::size_t paren = statement.find('(');
  const std::string_view head = statement.substr(0, paren);
  for (const std::string_view word : {"namespace", "extern"}) {
    if (has_word(head, word)) return Brace::scope;
  }
  if (paren != std::string_view::npos && statement.find(')') != std::string_view::npos)
    return Brace::function;
  for (const std::string_view word : {"struct", "class", "union", "enum"}) {
    if (has_word(head, word)) return Brace::scope;
  }
  return Brace::other;
}

// Preprocessor lines, continued ones whole, become blank lines.
std::string without_directives(std::string_view code) {
  std::string out;
  bool directive = false;
  for (std::size_t begin = 0; begin < code.size();) {
    const std::size_t end = std::min(code.find('\n', begin), code.size());
    const std::string_view line = code.substr(begin, end - begin);
    const std::size_t first = line.find_first_not_of(' ');
    directive = directive || (first != std::string_view::npos && line[first] == '#');
    if (!directive) out += line;
    out += '\n';
    directive = directive && line.ends_with('\\');
    begin = end + 1;
  }
  return out;
}

}  // namespace

std::string code_only(std::string_view text) { return Blanker(text).run(); }

Tree read_tree(const std::string& root) {
  namespace fs = std::filesystem;
  Tree tree;
  for (const std::string_view folder : kFolders) {
    const fs::path top = fs::path(root) / folder;
    if (!fs::is_directory(top)) continue;
    for (const auto& entry : fs::recursive_directory_iterator(top)) {
      const std::string extension = entry.path().extension().string();
      const bool known =
          std::find(std::begin(kExtensions), std::end(kExtensions), extension) != std::end(kExtensions);
      if (!entry.is_regular_file() || !known) continue;
      tree[fs::relative(entry.path(), root).generic_string()] = read_file(entry.path());
    }
  }
  return tree;
}

std::vector<Function> functions_of(const std::string& file, std::string_view text) {
  const std::string code = without_directives(code_only(text));
  std::vector<Function> found;
  std::vector<Brace> open;
  std::string statement;
  int line = 1;
  for (const char c : code) {
    line += c == '\n';
    const bool in_scope = std::all_of(open.begin(), open.end(), [](Brace b) { return b == Brace::scope; });
    if (c == '{') {
      open.push_back(in_scope ? kind_of(statement) : Brace::other);
      if (open.back() == Brace::function) {
        const bool device = has_word(statement, "__global__") || has_word(statement, "__device__");
        found.push_back({file, line, 0, device});
      }
      if (open.back() != Brace::other) statement.clear();
    } else if (c == '}' && !open.empty()) {
      if (open.back() == Brace::function) found.back().lines = line - found.back().line + 1;
      if (open.back() != Brace::other) statement.clear();
      open.pop_back();
    } else if (in_scope) {
      statement += c;
      if (c == ';') statement.clear();
    }
  }
  return found;
}

}  // namespace ridge::house
