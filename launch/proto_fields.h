// What the schema of the run config says about a field: its type in words, its limits, its neighbours.
#pragma once

#include <string>
#include <string_view>

namespace google::protobuf {
class Descriptor;
class FieldDescriptor;
class Message;
}  // namespace google::protobuf

namespace ridge {

/// `parent.leaf`, or `leaf` at the root.
std::string dotted(std::string_view parent, std::string_view leaf);

/// "a whole number", "a list of numbers", "a group of fields", ...
std::string type_in_words(const google::protobuf::FieldDescriptor& field);

/// Text in double quotes on one line, cut after 60 bytes.
std::string quoted(std::string_view text);

/// "; did you mean 'optim.lr'?", or the list of fields that `parent` has.
std::string suggestion(const google::protobuf::Descriptor& root, const google::protobuf::Descriptor& parent,
                       std::string_view parent_path, std::string_view leaf);

/// UserErrors that begin with `where` ("run.yaml:3: " or empty) unless the value keeps the limits of the
/// field.
void check_number(const google::protobuf::FieldDescriptor& field, double value, std::string_view where,
                  std::string_view path);
void check_word(const google::protobuf::FieldDescriptor& field, std::string_view value,
                std::string_view where, std::string_view path);

/// The value of a map field is limited by the options of the map itself.
const google::protobuf::FieldDescriptor& map_value(const google::protobuf::FieldDescriptor& field);

}  // namespace ridge
