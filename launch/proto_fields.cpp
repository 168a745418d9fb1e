#include "launch/proto_fields.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "core/base/error.h"
#include "launch/run_config.pb.h"

namespace ridge {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;

constexpr std::size_t kLongestQuote = 60;
constexpr std::size_t kMostSuggestions = 3;
constexpr std::size_t kLongestCompared = 64;

// Levenshtein's distance: insertions, deletions and exchanges that turn a into b.
std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = std::exchange(row[0], i);
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t exchanged = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = std::exchange(row[j], std::min({row[j] + 1, row[j - 1] + 1, exchanged}));
    }
  }
  return row[b.size()];
}

struct Candidate {
  std::size_t distance;
  std::string path;
  auto operator<=>(const Candidate&) const = default;
};

bool is_group(const FieldDescriptor& field) {
  return field.cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE && !field.is_map();
}

// Fields anywhere in the schema that bear exactly this name.
void namesakes(const Descriptor& type, const std::string& path, std::string_view leaf,
               std::vector<Candidate>& out) {
  for (int i = 0; i < type.field_count(); ++i) {
    const FieldDescriptor& field = *type.field(i);
    const std::string here = dotted(path, field.name());
    if (field.name() == leaf) out.push_back({1, here});
    if (is_group(field)) namesakes(*field.message_type(), here, leaf, out);
  }
}

void neighbours(const Descriptor& type, std::string_view path, std::string_view leaf,
                std::vector<Candidate>& out) {
  if (leaf.size() > kLongestCompared) return;
  for (int i = 0; i < type.field_count(); ++i) {
    const std::string& name = type.field(i)->name();
    const std::size_t distance = edit_distance(leaf, name);
    if (distance <= std::max<std::size_t>(1, std::min(leaf.size(), name.size()) / 3)) {
      out.push_back({distance, dotted(path, name)});
    }
  }
}

std::string joined_names(const Descriptor& type) {
  std::string names;
  for (int i = 0; i < type.field_count(); ++i) names += (i ? ", " : "") + type.field(i)->name();
  return names;
}

std::string plural_in_words(FieldDescriptor::CppType type) {
  switch (type) {
    case FieldDescriptor::CPPTYPE_INT64:
      return "whole numbers";
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return "numbers";
    default:
      return "texts";
  }
}

}  // namespace

std::string dotted(std::string_view parent, std::string_view leaf) {
  return parent.empty() ? std::string(leaf) : fmt::format("{}.{}", parent, leaf);
}

const FieldDescriptor& map_value(const FieldDescriptor& field) { return *field.message_type()->map_value(); }

std::string type_in_words(const FieldDescriptor& field) {
  if (field.is_map()) return "a map from names to " + plural_in_words(map_value(field).cpp_type());
  if (field.is_repeated()) return "a list of " + plural_in_words(field.cpp_type());
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT64:
      return "a whole number";
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return "a number";
    case FieldDescriptor::CPPTYPE_BOOL:
      return "true or false";
    case FieldDescriptor::CPPTYPE_MESSAGE:
      return "a group of fields";
    default:
      return "a text";
  }
}

std::string quoted(std::string_view text) {
  std::string out = "\"";
  for (const char c : text.substr(0, kLongestQuote)) {
    out +=
        static_cast<unsigned char>(c) < 0x20 || c == 0x7F ? fmt::format("\\x{:02x}", c) : std::string(1, c);
  }
  return out + (text.size() > kLongestQuote ? "...\"" : "\"");
}

std::string suggestion(const Descriptor& root, const Descriptor& parent, std::string_view parent_path,
                       std::string_view leaf) {
  std::vector<Candidate> found;
  neighbours(parent, parent_path, leaf, found);
  if (found.empty()) namesakes(root, "", leaf, found);
  if (found.empty()) return fmt::format("; known here: {}", joined_names(parent));
  std::sort(found.begin(), found.end());
  found.resize(std::min(found.size(), kMostSuggestions));
  std::string names;
  for (const Candidate& c : found) names += fmt::format("{}'{}'", names.empty() ? "" : " or ", c.path);
  return fmt::format("; did you mean {}?", names);
}

void check_number(const FieldDescriptor& field, double value, std::string_view where, std::string_view path) {
  const google::protobuf::FieldOptions& limits = field.options();
  const auto demand = [&](const auto& option, std::string_view words, auto kept) {
    if (!limits.HasExtension(option)) return;
    const double limit = limits.GetExtension(option);
    require(kept(value, limit), "{}{} must be {} {}, got {}", where, path, words, limit, value);
  };
  demand(config::above, "above", std::greater<>());
  demand(config::at_least, "at least", std::greater_equal<>());
  demand(config::below, "below", std::less<>());
  demand(config::at_most, "at most", std::less_equal<>());
}

void check_word(const FieldDescriptor& field, std::string_view value, std::string_view where,
                std::string_view path) {
  if (!field.options().HasExtension(config::one_of)) return;
  const std::string& allowed = field.options().GetExtension(config::one_of);
  std::string list;
  for (std::size_t begin = 0; begin <= allowed.size();) {
    const std::size_t end = std::min(allowed.find('|', begin), allowed.size());
    const std::string word = allowed.substr(begin, end - begin);
    if (word == value) return;
    list += (list.empty() ? "" : ", ") + word;
    begin = end + 1;
  }
  fail_user("{}{} must be one of {}, got {}", where, path, list, quoted(value));
}

}  // namespace ridge
