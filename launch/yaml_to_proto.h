// YAML into Protobuf messages and back, by reflection: strict about names, types and limits.
#pragma once

#include <string>
#include <string_view>

namespace google::protobuf {
class Message;
}

namespace ridge {

/// Merges a YAML document into `message`. Unknown, doubled, ill-typed and out-of-range fields are UserErrors
/// that begin with `name:line` and give the dotted path. An explicit `null` clears a field; a list or map
/// replaces.
void merge_yaml(std::string_view text, std::string_view name, google::protobuf::Message& message);

/// Applies `a.b=value`, the value being YAML; what follows the name of a map field is a key of that map.
void merge_override(std::string_view assignment, google::protobuf::Message& message);

/// Gives every absent field its `preset`; a group that is `on_demand` stays absent.
void fill_presets(google::protobuf::Message& message);

/// Checks the limits (`one_of`, `above`, `at_least`, `below`, `at_most`) of every field that is set.
void check_limits(const google::protobuf::Message& message);

/// The set fields as a YAML document that merge_yaml() reads back to an equal message.
std::string to_yaml(const google::protobuf::Message& message);

/// The set fields as a JSON object.
std::string to_json(const google::protobuf::Message& message);

}  // namespace ridge
