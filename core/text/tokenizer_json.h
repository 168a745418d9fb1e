// One value of a JSON document with its path: getters that check, and errors that name file, field and value.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace ridge {

/// Text for a one-line message: quoted, control characters escaped, cut after 60 bytes.
std::string in_quotes(std::string_view text);

/// Refers to the document and to the name of its source, which must outlive it.
class JsonNode {
 public:
  JsonNode(const nlohmann::json& value, std::string_view source, std::string path = {});

  /// True where the object has the key with a value other than null.
  bool has(const char* key) const;
  /// Child of an object; a UserError where it is absent.
  JsonNode at(const char* key) const;
  /// Elements of the array under `key`.
  std::vector<JsonNode> items(const char* key) const;

  std::string text(const char* key) const;
  std::string text(const char* key, std::string_view when_absent) const;
  bool flag(const char* key, bool when_absent) const;
  /// An integer in [low, high].
  std::int64_t integer(const char* key, std::int64_t low, std::int64_t high) const;

  const std::string& as_text() const;
  std::int64_t as_integer(std::int64_t low, std::int64_t high) const;
  const nlohmann::json& as_object() const;
  const nlohmann::json& as_array() const;
  const nlohmann::json& value() const { return *value_; }

  const std::string& path() const { return path_; }
  std::string_view source() const { return source_; }

  /// Throws a UserError "source: path: reason".
  [[noreturn]] void fail(std::string_view reason) const;
  /// Throws a UserError that the value under `key` is none of those supported.
  [[noreturn]] void unsupported(const char* key, std::string_view value, std::string_view supported) const;

 private:
  [[noreturn]] void wrong_type(const char* wanted) const;

  const nlohmann::json* value_;
  std::string_view source_;
  std::string path_;
};

/// Parses a whole document; a UserError that names the source where it is not JSON.
nlohmann::json parse_json(std::string_view text, std::string_view source);

}  // namespace ridge
