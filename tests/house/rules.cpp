#include "tests/house/rules.h"

#include <fmt/core.h>

#include <algorithm>
#include <regex>
#include <set>

namespace ridge::house {
namespace {

constexpr int kMostLines = 600;
constexpr int kMostHostLines = 60;
constexpr int kMostDeviceLines = 120;

bool is_test(const std::string& file) { return file.starts_with("tests/") || file.starts_with("docs/"); }
bool ends_with_any(const std::string& file, std::initializer_list<std::string_view> ends) {
  return std::any_of(ends.begin(), ends.end(), [&](std::string_view end) { return file.ends_with(end); });
}
bool is_cpp(const std::string& file) { return ends_with_any(file, {".h", ".cpp", ".cu", ".cuh"}); }
bool is_header(const std::string& file) { return ends_with_any(file, {".h", ".cuh"}); }

struct Line {
  int number;
  std::string text;
};

std::vector<Line> lines_of(const std::string& text) {
  std::vector<Line> lines;
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = std::min(text.find('\n', begin), text.size());
    lines.push_back({static_cast<int>(lines.size()) + 1, text.substr(begin, end - begin)});
    begin = end + 1;
  }
  return lines;
}

struct Include {
  int line;
  std::string target;
  bool quoted;
};

std::vector<Include> includes_of(const std::string& text) {
  static const std::regex kInclude(R"(^\s*#\s*include\s*([<"])([^>"]+)[>"].*)");
  std::vector<Include> found;
  for (const Line& line : lines_of(text)) {
    std::smatch match;
    if (std::regex_match(line.text, match, kInclude))
      found.push_back({line.number, match[2], match[1] == "\""});
  }
  return found;
}

// A floor of design.md's house; rooms of one floor do not know each other. Floor 0: not a part of the house.
struct Place {
  int floor;
  std::string room;
};

Place place_of(const std::string& file) {
  static const std::pair<std::string_view, int> kFloors[] = {
      {"core/base/", 1}, {"kernels/", 2}, {"core/", 3},      {"parallel/", 4}, {"optim/", 4},
      {"lora/", 4},      {"quant/", 5},   {"inference/", 5}, {"launch/", 6},   {"experiments/", 7}};
  for (const auto& [folder, floor] : kFloors) {
    if (file.starts_with(folder)) return {floor, std::string(folder)};
  }
  return {0, ""};
}

bool may_include(const std::string& from, const std::string& to) {
  if (from.starts_with("core/io/") && to.starts_with("core/text/")) return false;  // text stands on io
  const Place here = place_of(from);
  const Place there = place_of(to);
  if (there.floor == 0) return false;
  return there.floor < here.floor || there.room == here.room;
}

// The source from which an include comes: a generated header stands for its .proto.
std::string source_of(const std::string& target) {
  const std::string_view generated = ".pb.h";
  if (!target.ends_with(generated)) return target;
  return target.substr(0, target.size() - generated.size()) + ".proto";
}

// Depth first; `trail` is the way to `file`.
void find_circles(const Tree& tree, const std::string& file, std::vector<std::string>& trail,
                  std::set<std::string>& done, Findings& out) {
  const auto seen = std::find(trail.begin(), trail.end(), file);
  if (seen != trail.end()) {
    std::string circle;
    for (auto step = seen; step != trail.end(); ++step) circle += *step + " -> ";
    out.push_back(circle + file);
    return;
  }
  if (done.count(file) || !tree.count(file)) return;
  trail.push_back(file);
  for (const Include& include : includes_of(tree.at(file))) {
    if (include.quoted) find_circles(tree, include.target, trail, done, out);
  }
  trail.pop_back();
  done.insert(file);
}

void find_matches(const std::string& file, const std::string& text, const std::regex& what,
                  std::string_view why, Findings& out) {
  for (const Line& line : lines_of(text)) {
    std::smatch match;
    if (std::regex_search(line.text, match, what)) {
      out.push_back(fmt::format("{}:{}: '{}': {}", file, line.number, match.str(), why));
    }
  }
}

}  // namespace

Findings floor_findings(const Tree& tree) {
  Findings out;
  for (const auto& [file, text] : tree) {
    if (is_test(file) || !is_cpp(file)) continue;
    for (const Include& include : includes_of(text)) {
      if (!include.quoted) continue;
      const std::string target = source_of(include.target);
      if (!tree.count(target)) {
        out.push_back(
            fmt::format("{}:{}: \"{}\" is not a path from the root", file, include.line, include.target));
      } else if (!may_include(file, target)) {
        out.push_back(fmt::format("{}:{}: includes \"{}\", which does not stand below it", file, include.line,
                                  include.target));
      }
    }
  }
  return out;
}

Findings circle_findings(const Tree& tree) {
  Findings out;
  std::vector<std::string> trail;
  std::set<std::string> done;
  for (const auto& [file, text] : tree) find_circles(tree, file, trail, done, out);
  return out;
}

Findings heavy_header_findings(const Tree& tree) {
  static const std::regex kHeavy(
      R"(nlohmann/json\.hpp|hdf5.*|yaml-cpp/.*|google/protobuf/.*|.*\.pb\.h|mpi\.h|pcre2\.h)");
  Findings out;
  for (const auto& [file, text] : tree) {
    if (is_test(file) || !is_header(file)) continue;
    for (const Include& include : includes_of(text)) {
      if (std::regex_match(include.target, kHeavy)) {
        out.push_back(fmt::format("{}:{}: {} belongs in a .cpp", file, include.line, include.target));
      }
    }
  }
  return out;
}

Findings length_findings(const Tree& tree) {
  Findings out;
  for (const auto& [file, text] : tree) {
    if (!is_cpp(file) && !file.ends_with(".py")) continue;
    const auto lines = std::count(text.begin(), text.end(), '\n');
    if (lines > kMostLines) out.push_back(fmt::format("{}: {} lines, at most {}", file, lines, kMostLines));
  }
  return out;
}

Findings opening_findings(const Tree& tree) {
  Findings out;
  for (const auto& [file, text] : tree) {
    if (!is_header(file)) continue;
    if (!text.starts_with("// ")) out.push_back(file + ": begins without a line that says what it is");
    if (text.find("\n#pragma once\n") == std::string::npos) out.push_back(file + ": has no #pragma once");
  }
  return out;
}

Findings forbidden_call_findings(const Tree& tree) {
  static const std::regex kEnvironment(R"(\b(secure_getenv|getenv|environ)\b)");
  // A plain abort() may be a member, as a communicator's is.
  static const std::regex kEnding(
      R"((^|[^\w.>:])((std::|::)?(exit|_exit|_Exit|quick_exit)|(std)?::(abort|terminate))\s*\()");
  Findings out;
  for (const auto& [file, text] : tree) {
    if (is_test(file) || !is_cpp(file)) continue;
    const std::string code = code_only(text);
    const bool may_read = file.starts_with("launch/") || file.starts_with("core/base/env.");
    if (!may_read)
      find_matches(file, code, kEnvironment, "only launch/ and core/base/env.h read the environment", out);
    find_matches(file, code, kEnding, "throw an exception instead", out);
  }
  return out;
}

Findings private_path_findings(const Tree& tree) {
  // Written in parts, so that this file does not find itself.
  static const std::regex kPrivate(std::string("/(wo") + "rk|ho" + "me/[a-z]+|op" + "t/refenv)/");
  Findings out;
  for (const auto& [file, text] : tree) find_matches(file, text, kPrivate, "a path of one machine", out);
  return out;
}

Findings function_length_findings(const Tree& tree) {
  Findings out;
  for (const auto& [file, text] : tree) {
    if (!is_cpp(file)) continue;
    for (const Function& f : functions_of(file, text)) {
      const int most = f.is_device ? kMostDeviceLines : kMostHostLines;
      if (f.lines > most)
        out.push_back(fmt::format("{}:{}: a function of {} lines, at most {}", file, f.line, f.lines, most));
    }
  }
  return out;
}

}  // namespace ridge::house
