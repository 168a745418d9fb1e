#include "launch/yaml_to_proto.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>
#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <set>
#include <vector>

#include "core/base/error.h"
#include "launch/proto_fields.h"
#include "launch/run_config.pb.h"
#include "launch/yaml_text.h"

namespace ridge {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

std::string value_in_words(const YAML::Node& node) {
  if (node.IsMap()) return "a map";
  if (node.IsSequence()) return "a list";
  if (!node.IsScalar()) return "nothing";
  return quoted(node.Scalar());
}

// yaml-cpp gives one null node for `key: null` and for `key:`; only the text tells which.
bool is_written_null(const YAML::Node& node, std::string_view text) {
  if (node.Mark().is_null()) return false;
  const auto at = static_cast<std::size_t>(node.Mark().pos);
  const std::string_view rest = text.substr(std::min(at, text.size()));
  return rest.starts_with("~") || rest.starts_with("null") || rest.starts_with("Null") ||
         rest.starts_with("NULL");
}

// yaml-cpp tags plain scalars "?", quoted ones "!".
bool is_plain(const YAML::Node& node) { return node.IsScalar() && node.Tag() != "!"; }

template <class T>
bool parse_whole(std::string_view text, T& value) {
  if (text.starts_with('+')) text.remove_prefix(1);
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size();
}

class Reader {
 public:
  Reader(YamlSource source, const Message& root) : source_(std::move(source)), root_(*root.GetDescriptor()) {}

  void group(const YAML::Node& node, Message& message, const std::string& path) const;
  void field(const YAML::Node& node, Message& message, const FieldDescriptor& field,
             const std::string& path) const;
  void map_entry(const YAML::Node& key, const YAML::Node& value, Message& message,
                 const FieldDescriptor& field, const std::string& path) const;
  const FieldDescriptor& find(const Message& message, const std::string& name, const std::string& path,
                              const std::string& where) const;

 private:
  void scalar(const YAML::Node& node, Message& message, const FieldDescriptor& field,
              const FieldDescriptor& limits, const std::string& path) const;
  void list(const YAML::Node& node, Message& message, const FieldDescriptor& field,
            const std::string& path) const;
  void map(const YAML::Node& node, Message& message, const FieldDescriptor& field,
           const std::string& path) const;
  void check_tag(const YAML::Node& node, const std::string& path) const;
  std::string key_of(const YAML::Node& key, const std::string& path) const;
  std::string text_of(const YAML::Node& node, const std::string& path) const;
  std::int64_t int_of(const YAML::Node& node, const std::string& path) const;
  double double_of(const YAML::Node& node, const std::string& path) const;
  bool bool_of(const YAML::Node& node, const std::string& path) const;
  [[noreturn]] void expected(const std::string& what, const YAML::Node& got, const std::string& path) const;

  YamlSource source_;
  const Descriptor& root_;
};

void Reader::expected(const std::string& what, const YAML::Node& got, const std::string& path) const {
  const bool text_for_number = got.IsScalar() && !is_plain(got);
  fail_user("{}{} must be {}, got {}{}", at(source_, got), path, what, text_for_number ? "the text " : "",
            value_in_words(got));
}

void Reader::check_tag(const YAML::Node& node, const std::string& path) const {
  const std::string& tag = node.Tag();
  require(tag.empty() || tag == "?" || tag == "!", "{}{} has the tag {}: tags are not read here",
          at(source_, node), path, quoted(tag));
}

std::string Reader::text_of(const YAML::Node& node, const std::string& path) const {
  const std::string& text = node.Scalar();
  // An escape in quotes can make what the file itself may not hold.
  require(text_prefix(text) == text.size(), "{}{} holds a zero byte or one that is not UTF-8",
          at(source_, node), path);
  return text;
}

std::int64_t Reader::int_of(const YAML::Node& node, const std::string& path) const {
  std::int64_t value = 0;
  if (!is_plain(node) || !parse_whole(node.Scalar(), value)) expected("a whole number", node, path);
  return value;
}

double Reader::double_of(const YAML::Node& node, const std::string& path) const {
  double value = 0;
  if (!is_plain(node) || !parse_whole(node.Scalar(), value) || !std::isfinite(value)) {
    expected("a finite number", node, path);
  }
  return value;
}

bool Reader::bool_of(const YAML::Node& node, const std::string& path) const {
  const bool yes = node.Scalar() == "true";
  if (!is_plain(node) || (!yes && node.Scalar() != "false")) expected("true or false", node, path);
  return yes;
}

// Sets `field`, or appends to it where it is a list; `limits` is the field that carries the options.
void Reader::scalar(const YAML::Node& node, Message& message, const FieldDescriptor& field,
                    const FieldDescriptor& limits, const std::string& path) const {
  if (!node.IsScalar()) expected(type_in_words(limits), node, path);
  check_tag(node, path);
  const auto& r = *message.GetReflection();
  const std::string where = at(source_, node);
  const auto set = [&](auto value, auto setter, auto adder) {
    field.is_repeated() ? (r.*adder)(&message, &field, value) : (r.*setter)(&message, &field, value);
  };
  using R = google::protobuf::Reflection;
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT64:
      check_number(limits, static_cast<double>(int_of(node, path)), where, path);
      return set(int_of(node, path), &R::SetInt64, &R::AddInt64);
    case FieldDescriptor::CPPTYPE_DOUBLE:
      check_number(limits, double_of(node, path), where, path);
      return set(double_of(node, path), &R::SetDouble, &R::AddDouble);
    case FieldDescriptor::CPPTYPE_BOOL:
      return set(bool_of(node, path), &R::SetBool, &R::AddBool);
    case FieldDescriptor::CPPTYPE_STRING:
      check_word(limits, text_of(node, path), where, path);
      return set(text_of(node, path), &R::SetString, &R::AddString);
    default:
      fail("the schema's field {} has a type that configs do not use", path);
  }
}

void Reader::list(const YAML::Node& node, Message& message, const FieldDescriptor& field,
                  const std::string& path) const {
  if (node.IsMap()) expected(type_in_words(field), node, path);
  message.GetReflection()->ClearField(&message, &field);
  if (node.IsScalar()) return scalar(node, message, field, field, path);
  check_tag(node, path);
  const bool may_be_empty = !field.options().HasExtension(config::preset);
  require(may_be_empty || node.size() > 0, "{}{} is an empty list: give it values or leave it out",
          at(source_, node), path);
  for (std::size_t i = 0; i < node.size(); ++i) {
    scalar(node[i], message, field, field, fmt::format("{}[{}]", path, i));
  }
}

void Reader::map_entry(const YAML::Node& key, const YAML::Node& value, Message& message,
                       const FieldDescriptor& field, const std::string& path) const {
  const auto& r = *message.GetReflection();
  const FieldDescriptor& key_field = *field.message_type()->map_key();
  const std::string name = key_of(key, path);
  const std::string here = dotted(path, name);
  Message* entry = nullptr;
  for (int i = 0; i < r.FieldSize(message, &field) && !entry; ++i) {
    Message* candidate = r.MutableRepeatedMessage(&message, &field, i);
    if (candidate->GetReflection()->GetString(*candidate, &key_field) == name) entry = candidate;
  }
  if (!entry) entry = r.AddMessage(&message, &field);
  entry->GetReflection()->SetString(entry, &key_field, name);
  scalar(value, *entry, map_value(field), map_value(field), here);
  const auto& v = *entry->GetReflection();
  const bool whole = map_value(field).cpp_type() == FieldDescriptor::CPPTYPE_INT64;
  check_number(field,
               whole ? static_cast<double>(v.GetInt64(*entry, &map_value(field)))
                     : v.GetDouble(*entry, &map_value(field)),
               at(source_, value), here);
}

void Reader::map(const YAML::Node& node, Message& message, const FieldDescriptor& field,
                 const std::string& path) const {
  if (!node.IsMap()) expected(type_in_words(field), node, path);
  check_tag(node, path);
  message.GetReflection()->ClearField(&message, &field);
  std::set<std::string> seen;
  for (const auto& entry : node) {
    const std::string name = key_of(entry.first, path);
    require(seen.insert(name).second, "{}{} is given twice", at(source_, entry.first), dotted(path, name));
    map_entry(entry.first, entry.second, message, field, path);
  }
}

std::string Reader::key_of(const YAML::Node& key, const std::string& path) const {
  const std::string owner = path.empty() ? "the config" : path;
  require(key.IsScalar(), "{}{} has {} for the name of a field", at(source_, key), owner,
          value_in_words(key));
  return text_of(key, owner);
}

const FieldDescriptor& Reader::find(const Message& message, const std::string& name, const std::string& path,
                                    const std::string& where) const {
  const Descriptor& type = *message.GetDescriptor();
  const FieldDescriptor* field = type.FindFieldByName(name);
  if (!field) {
    const std::string shown = quoted(dotted(path, name));
    fail_user("{}unknown field '{}'{}", where, shown.substr(1, shown.size() - 2),
              suggestion(root_, type, path, name));
  }
  return *field;
}

void Reader::field(const YAML::Node& node, Message& message, const FieldDescriptor& field,
                   const std::string& path) const {
  if (field.is_map()) return map(node, message, field, path);
  if (field.is_repeated()) return list(node, message, field, path);
  if (field.cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE) return scalar(node, message, field, field, path);
  if (!node.IsMap()) expected(type_in_words(field), node, path);
  group(node, *message.GetReflection()->MutableMessage(&message, &field), path);
}

void Reader::group(const YAML::Node& node, Message& message, const std::string& path) const {
  check_tag(node, path);
  std::set<std::string> seen;
  for (const auto& entry : node) {
    const std::string name = key_of(entry.first, path);
    const std::string here = dotted(path, name);
    const FieldDescriptor& found = find(message, name, path, at(source_, entry.first));
    require(seen.insert(name).second, "{}{} is given twice", at(source_, entry.first), here);
    if (entry.second.IsNull()) {
      require(is_written_null(entry.second, source_.text),
              "{}{} has no value: give {}, or null to leave it unset", at(source_, entry.first), here,
              type_in_words(found));
      message.GetReflection()->ClearField(&message, &found);
    } else {
      field(entry.second, message, found, here);
    }
  }
}

// An override's value: raw text for a text field, so that it needs no quotes; YAML for the others.
YAML::Node override_value(const FieldDescriptor& field, const std::string& text, const YamlSource& source) {
  const bool is_text = field.cpp_type() == FieldDescriptor::CPPTYPE_STRING && !field.is_repeated();
  const bool is_quoted = text.starts_with('"') || text.starts_with('\'');
  if (!is_text || is_quoted || text == "null" || text == "~") return load_yaml(text, source);
  return YAML::Node(text);
}

std::string preset_source(const FieldDescriptor& field) {
  return fmt::format("preset of {}", field.full_name());
}

}  // namespace

void merge_yaml(std::string_view text, std::string_view name, Message& message) {
  const YamlSource source{std::string(name), text};
  const YAML::Node node = load_yaml(text, source);
  if (node.IsNull()) return;
  require(node.IsMap(), "{}must hold fields such as 'train: ...', got {}", at(source, node),
          value_in_words(node));
  Reader(source, message).group(node, message, "");
}

void merge_override(std::string_view assignment, Message& message) {
  YamlSource source{fmt::format("override {}", quoted(assignment)), {}, false};
  check_text(assignment, source);
  const std::size_t equals = assignment.find('=');
  require(equals != std::string_view::npos && equals > 0, "{}: write it as a.b=value", source.name);
  const std::string value(assignment.substr(equals + 1));
  source.text = value;
  require(!value.empty(), "{}: no value after '='", source.name);
  const Reader reader(source, message);
  Message* owner = &message;
  std::string path;
  for (std::string_view rest = assignment.substr(0, equals);;) {
    const std::size_t dot = std::min(rest.find('.'), rest.size());
    const std::string name(rest.substr(0, dot));
    const FieldDescriptor& field = reader.find(*owner, name, path, source.name + ": ");
    path = dotted(path, name);
    rest.remove_prefix(std::min(dot + 1, rest.size()));
    if (rest.empty()) {
      const YAML::Node node = override_value(field, value, source);
      if (node.IsNull()) return owner->GetReflection()->ClearField(owner, &field);
      return reader.field(node, *owner, field, path);
    }
    if (field.is_map()) {
      return reader.map_entry(YAML::Node(std::string(rest)), load_yaml(value, source), *owner, field, path);
    }
    const bool is_group = field.cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE;
    require(is_group, "{}: {} is {} and has no field '{}'", source.name, path, type_in_words(field), rest);
    owner = owner->GetReflection()->MutableMessage(owner, &field);
  }
}

void fill_presets(Message& message) {
  const Descriptor& type = *message.GetDescriptor();
  const auto& r = *message.GetReflection();
  for (int i = 0; i < type.field_count(); ++i) {
    const FieldDescriptor& field = *type.field(i);
    const bool set = field.is_repeated() ? r.FieldSize(message, &field) > 0 : r.HasField(message, &field);
    const bool is_group = field.cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE && !field.is_repeated();
    if (is_group && (set || !field.options().GetExtension(config::on_demand))) {
      fill_presets(*r.MutableMessage(&message, &field));
    } else if (!set && field.options().HasExtension(config::preset)) {
      const std::string& text = field.options().GetExtension(config::preset);
      const YamlSource source{preset_source(field), text, false};
      const YAML::Node value = load_yaml(text, source);
      Reader(source, message).field(value, message, field, field.name());
    }
  }
}

}  // namespace ridge
