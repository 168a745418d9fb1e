#include "core/text/postprocessor.h"

#include <limits>
#include <nlohmann/json.hpp>

namespace ridge {
namespace {

constexpr int kDeepest = 16;
constexpr std::size_t kMostTemplates = 64;
constexpr std::int64_t kMostId = std::numeric_limits<std::int32_t>::max();

}  // namespace

PostProcessors::PostProcessors(const JsonNode& node) { add(node, 0); }

void PostProcessors::add(const JsonNode& node, int depth) {
  const std::string type = node.text("type");
  if (type == "Sequence") {
    if (depth >= kDeepest) node.fail("Sequences are nested too deeply");
    for (const JsonNode& step : node.items("processors")) add(step, depth + 1);
  } else if (type == "TemplateProcessing") {
    templates_.push_back(parse_template(node));
  } else if (type == "BertProcessing" || type == "RobertaProcessing") {
    templates_.push_back(parse_bert(node));
  } else if (type != "ByteLevel") {
    node.unsupported("type", type,
                     "TemplateProcessing, ByteLevel, Sequence, BertProcessing, RobertaProcessing");
  }
  if (templates_.size() > kMostTemplates) node.fail("more than 64 templates");
}

PostProcessors::Template PostProcessors::parse_template(const JsonNode& node) {
  Template out;
  bool has_text = false;
  for (const JsonNode& part : node.items("single")) {
    if (part.has("Sequence")) {
      if (const std::string which = part.at("Sequence").text("id"); which != "A") {
        part.fail("the Sequence of a single text must be \"A\", not " + in_quotes(which));
      }
      if (has_text) part.fail("the text occurs twice");
      has_text = true;
      out.push_back({true, {}});
      continue;
    }
    const std::string name = part.at("SpecialToken").text("id");
    Part special;
    for (const JsonNode& id : node.at("special_tokens").at(name.c_str()).items("ids")) {
      special.ids.push_back(static_cast<std::int32_t>(id.as_integer(0, kMostId)));
    }
    out.push_back(std::move(special));
  }
  if (!has_text) node.at("single").fail("the text (Sequence \"A\") does not occur");
  return out;
}

// {"cls": ["<s>", 0], "sep": ["</s>", 2]}
PostProcessors::Template PostProcessors::parse_bert(const JsonNode& node) {
  const auto special = [&node](const char* key) {
    const std::vector<JsonNode> pair = node.items(key);
    if (pair.size() != 2) node.at(key).fail("expected a token and its id");
    return Part{false, {static_cast<std::int32_t>(pair[1].as_integer(0, kMostId))}};
  };
  return {special("cls"), Part{true, {}}, special("sep")};
}

std::vector<std::int32_t> PostProcessors::apply(std::vector<std::int32_t> ids,
                                                bool add_special_tokens) const {
  if (!add_special_tokens) return ids;
  for (const Template& pattern : templates_) {
    std::vector<std::int32_t> out;
    for (const Part& part : pattern) {
      const std::vector<std::int32_t>& source = part.is_text ? ids : part.ids;
      out.insert(out.end(), source.begin(), source.end());
    }
    ids = std::move(out);
  }
  return ids;
}

}  // namespace ridge
