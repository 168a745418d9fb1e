#include "launch/yaml_text.h"

#include <utf8proc.h>
#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/yaml.h>

#include <sstream>

#include "core/base/error.h"

namespace ridge {
namespace {

constexpr std::size_t kLargestDocument = 256 * 1024;  // bytes

std::string at(const YamlSource& source, const YAML::Mark& mark) {
  return source.lines && !mark.is_null() ? fmt::format("{}:{}: ", source.name, mark.line + 1)
                                         : source.name + ": ";
}

// Takes a document and keeps nothing.
struct Skip : YAML::EventHandler {
  void OnDocumentStart(const YAML::Mark&) override {}
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark&, YAML::anchor_t) override {}
  void OnAlias(const YAML::Mark&, YAML::anchor_t) override {}
  void OnScalar(const YAML::Mark&, const std::string&, YAML::anchor_t, const std::string&) override {}
  void OnSequenceStart(const YAML::Mark&, const std::string&, YAML::anchor_t,
                       YAML::EmitterStyle::value) override {}
  void OnSequenceEnd() override {}
  void OnMapStart(const YAML::Mark&, const std::string&, YAML::anchor_t, YAML::EmitterStyle::value) override {
  }
  void OnMapEnd() override {}
};

// YAML::LoadAll never returns from some texts, such as a lone comma, so a second document is only looked for.
bool has_second_document(const std::string& text) {
  std::istringstream stream(text);
  YAML::Parser parser(stream);
  Skip skip;
  return parser.HandleNextDocument(skip) && parser.HandleNextDocument(skip);
}

}  // namespace

std::string at(const YamlSource& source, const YAML::Node& node) { return at(source, node.Mark()); }

std::size_t text_prefix(std::string_view text) {
  const auto* const begin = reinterpret_cast<const utf8proc_uint8_t*>(text.data());
  std::size_t at = 0;
  while (at < text.size()) {
    utf8proc_int32_t code = 0;
    const utf8proc_ssize_t used =
        utf8proc_iterate(begin + at, static_cast<utf8proc_ssize_t>(text.size() - at), &code);
    if (used <= 0 || code == 0) break;
    at += static_cast<std::size_t>(used);
  }
  return at;
}

void check_text(std::string_view text, const YamlSource& source) {
  require(text.size() <= kLargestDocument, "{}: {} bytes of YAML, a run config has at most {}", source.name,
          text.size(), kLargestDocument);
  const std::size_t good = text_prefix(text);
  require(good == text.size(), "{}: not a text: byte {} is {}", source.name, good,
          good < text.size() && text[good] == '\0' ? "zero" : "not UTF-8");
}

YAML::Node load_yaml(std::string_view text, const YamlSource& source) {
  check_text(text, source);
  const std::string copy(text);
  try {
    require(!has_second_document(copy), "{}: more than one YAML document, or text after its end",
            source.name);
    return YAML::Load(copy);
  } catch (const YAML::Exception& e) {
    fail_user("{}not valid YAML: {}", at(source, e.mark), e.msg);
  }
}

}  // namespace ridge
