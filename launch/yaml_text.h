// YAML documents from untrusted text: bounded, one document, errors with their line.
#pragma once

#include <string>
#include <string_view>

namespace YAML {
class Node;
}

namespace ridge {

/// Where a text comes from: a file, whose lines are counted, or one line such as an override.
struct YamlSource {
  std::string name;
  std::string_view text;
  bool lines = true;
};

/// "run.yaml:7: ", or "name: " where lines are not counted.
std::string at(const YamlSource& source, const YAML::Node& node);

/// Bytes before the first that is zero or not UTF-8.
std::size_t text_prefix(std::string_view text);

/// A UserError unless the text is UTF-8 without zero bytes and at most 256 KiB.
void check_text(std::string_view text, const YamlSource& source);

/// The one document of the text, or a null node where it has none; UserErrors for what is not YAML.
YAML::Node load_yaml(std::string_view text, const YamlSource& source);

}  // namespace ridge
