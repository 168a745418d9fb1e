#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <vector>

#include "core/base/error.h"
#include "launch/proto_fields.h"
#include "launch/yaml_to_proto.h"

namespace ridge {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using Json = nlohmann::ordered_json;

std::vector<const FieldDescriptor*> set_fields(const Message& message) {
  std::vector<const FieldDescriptor*> fields;
  message.GetReflection()->ListFields(message, &fields);
  return fields;
}

Json group_to_json(const Message& message);

// One value of a field: element `index` where the field is a list.
Json value_to_json(const Message& message, const FieldDescriptor& field, int index) {
  const auto& r = *message.GetReflection();
  const bool many = field.is_repeated();
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT64:
      return many ? r.GetRepeatedInt64(message, &field, index) : r.GetInt64(message, &field);
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return many ? r.GetRepeatedDouble(message, &field, index) : r.GetDouble(message, &field);
    case FieldDescriptor::CPPTYPE_BOOL:
      return many ? r.GetRepeatedBool(message, &field, index) : r.GetBool(message, &field);
    case FieldDescriptor::CPPTYPE_STRING:
      return many ? r.GetRepeatedString(message, &field, index) : r.GetString(message, &field);
    case FieldDescriptor::CPPTYPE_MESSAGE:
      return group_to_json(r.GetMessage(message, &field));
    default:
      fail("the schema's field {} has a type that configs do not use", field.full_name());
  }
}

Json map_to_json(const Message& message, const FieldDescriptor& field) {
  std::map<std::string, Json> sorted;
  for (int i = 0; i < message.GetReflection()->FieldSize(message, &field); ++i) {
    const Message& entry = message.GetReflection()->GetRepeatedMessage(message, &field, i);
    const std::string key = entry.GetReflection()->GetString(entry, field.message_type()->map_key());
    sorted[key] = value_to_json(entry, map_value(field), 0);
  }
  Json out = Json::object();
  for (const auto& [key, value] : sorted) out[key] = value;
  return out;
}

Json group_to_json(const Message& message) {
  Json out = Json::object();
  for (const FieldDescriptor* field : set_fields(message)) {
    if (field->is_map()) {
      out[field->name()] = map_to_json(message, *field);
    } else if (field->is_repeated()) {
      Json list = Json::array();
      const int size = message.GetReflection()->FieldSize(message, field);
      for (int i = 0; i < size; ++i) list.push_back(value_to_json(message, *field, i));
      out[field->name()] = std::move(list);
    } else {
      out[field->name()] = value_to_json(message, *field, 0);
    }
  }
  return out;
}

// YAML's escapes in double quotes include JSON's, so every text that is not plainly safe is written as JSON
// does.
std::string text_to_yaml(const std::string& text) {
  const auto is_safe = [](unsigned char c) {
    return std::isalnum(c) || c == '_' || c == '/' || c == '.' || c == '-';
  };
  const bool plain = !text.empty() && (std::isalpha(static_cast<unsigned char>(text[0])) || text[0] == '/') &&
                     std::all_of(text.begin(), text.end(), is_safe);
  static constexpr std::string_view kNulls[] = {"null", "Null", "NULL"};
  const bool is_null = std::find(std::begin(kNulls), std::end(kNulls), text) != std::end(kNulls);
  return plain && !is_null ? text : Json(text).dump();
}

std::string flow_yaml(const Json& value) {
  if (value.is_string()) return text_to_yaml(value.get<std::string>());
  if (value.is_number_float())
    return fmt::format("{}", value.get<double>());  // shortest that reads back equal
  if (!value.is_structured()) return value.dump();
  std::string out;
  for (const auto& [key, item] : value.items()) {
    if (!out.empty()) out += ", ";
    out += value.is_object() ? text_to_yaml(key) + ": " + flow_yaml(item) : flow_yaml(item);
  }
  return value.is_object() ? "{" + out + "}" : "[" + out + "]";
}

void block_yaml(const Message& message, const Json& json, const std::string& indent, std::string& out) {
  for (const FieldDescriptor* field : set_fields(message)) {
    const Json& value = json[field->name()];
    const bool is_block = !field->is_repeated() && value.is_object() && !value.empty();
    out += indent + field->name() + ":" + (is_block ? "" : " " + flow_yaml(value)) + "\n";
    if (is_block) block_yaml(message.GetReflection()->GetMessage(message, field), value, indent + "  ", out);
  }
}

void check_field(const Message& message, const FieldDescriptor& field, const Json& value,
                 const std::string& path);

void check_group(const Message& message, const std::string& path) {
  const Json json = group_to_json(message);
  for (const FieldDescriptor* field : set_fields(message)) {
    check_field(message, *field, json[field->name()], dotted(path, field->name()));
  }
}

void check_field(const Message& message, const FieldDescriptor& field, const Json& value,
                 const std::string& path) {
  if (value.is_string()) return check_word(field, value.get<std::string>(), "", path);
  if (value.is_number()) return check_number(field, value.get<double>(), "", path);
  if (field.cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE && !field.is_map()) {
    return check_group(message.GetReflection()->GetMessage(message, &field), path);
  }
  if (!value.is_structured()) return;
  for (const auto& [key, item] : value.items()) {
    check_field(message, field, item,
                value.is_array() ? fmt::format("{}[{}]", path, key) : dotted(path, key));
  }
}

}  // namespace

std::string to_json(const Message& message) { return group_to_json(message).dump(2) + "\n"; }

std::string to_yaml(const Message& message) {
  std::string out;
  block_yaml(message, group_to_json(message), "", out);
  return out;
}

void check_limits(const Message& message) { check_group(message, ""); }

}  // namespace ridge
