#include "core/text/tokenizer_json.h"

#include <nlohmann/json.hpp>

#include "core/base/error.h"
#include "core/io/json_depth.h"

namespace ridge {

using nlohmann::json;

std::string in_quotes(std::string_view text) {
  constexpr std::size_t kMost = 60;
  std::string out = "\"";
  for (const char c : text.substr(0, kMost)) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) {
      out += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
    } else {
      out += c;
    }
  }
  return out + (text.size() > kMost ? "...\"" : "\"");
}

JsonNode::JsonNode(const json& value, std::string_view source, std::string path)
    : value_(&value), source_(source), path_(std::move(path)) {}

void JsonNode::fail(std::string_view reason) const {
  fail_user("{}: {}: {}", source_, path_.empty() ? "the document" : path_, reason);
}

void JsonNode::unsupported(const char* key, std::string_view value, std::string_view supported) const {
  fail(fmt::format("{} is {}, which is not supported; supported: {}", key, in_quotes(value), supported));
}

void JsonNode::wrong_type(const char* wanted) const {
  fail(fmt::format("expected {}, found {}", wanted, value_->type_name()));
}

bool JsonNode::has(const char* key) const {
  const auto found = as_object().find(key);
  return found != value_->end() && !found->is_null();
}

JsonNode JsonNode::at(const char* key) const {
  const auto found = as_object().find(key);
  if (found == value_->end()) fail(fmt::format("has no field {}", in_quotes(key)));
  return {*found, source_, path_.empty() ? key : path_ + "." + key};
}

std::vector<JsonNode> JsonNode::items(const char* key) const {
  const JsonNode list = at(key);
  std::vector<JsonNode> out;
  for (const json& item : list.as_array()) {
    out.emplace_back(item, source_, fmt::format("{}[{}]", list.path_, out.size()));
  }
  return out;
}

std::string JsonNode::text(const char* key) const { return at(key).as_text(); }

std::string JsonNode::text(const char* key, std::string_view when_absent) const {
  return has(key) ? at(key).as_text() : std::string(when_absent);
}

bool JsonNode::flag(const char* key, bool when_absent) const {
  if (!has(key)) return when_absent;
  const JsonNode node = at(key);
  if (!node.value_->is_boolean()) node.wrong_type("true or false");
  return node.value_->get<bool>();
}

std::int64_t JsonNode::integer(const char* key, std::int64_t low, std::int64_t high) const {
  return at(key).as_integer(low, high);
}

const std::string& JsonNode::as_text() const {
  if (!value_->is_string()) wrong_type("a string");
  return value_->get_ref<const std::string&>();
}

std::int64_t JsonNode::as_integer(std::int64_t low, std::int64_t high) const {
  if (!value_->is_number_integer()) wrong_type("an integer");
  const bool huge =
      value_->is_number_unsigned() && value_->get<std::uint64_t>() > static_cast<std::uint64_t>(high);
  const std::int64_t number = huge ? high : value_->get<std::int64_t>();
  if (huge || number < low || number > high) {
    fail(fmt::format("{} is out of range; it must be from {} to {}", value_->dump(), low, high));
  }
  return number;
}

const json& JsonNode::as_object() const {
  if (!value_->is_object()) wrong_type("an object");
  return *value_;
}

const json& JsonNode::as_array() const {
  if (!value_->is_array()) wrong_type("an array");
  return *value_;
}

json parse_json(std::string_view text, std::string_view source) {
  check_json_depth(text, source);
  try {
    return json::parse(text.begin(), text.end());
  } catch (const json::parse_error& error) {
    fail_user("{}: not valid JSON at byte {} of {}", source, error.byte, text.size());
  } catch (const json::out_of_range&) {
    fail_user("{}: not valid JSON: a number is too large for any field", source);
  }
}

}  // namespace ridge
