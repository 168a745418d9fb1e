// JSON for machine-readable output, in the order in which it is added.
#pragma once

#include <concepts>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>
#include <type_traits>
#include <variant>
#include <vector>

namespace ridge {

/// A key with its value.
struct JsonField {
  using Value = std::variant<std::int64_t, double, bool, std::string, std::vector<std::int32_t>,
                             std::vector<std::int64_t>>;
  template <std::integral T>
  JsonField(std::string_view k, T v) : key(k) {
    if constexpr (std::is_same_v<T, bool>) {
      value = v;
    } else {
      value = static_cast<std::int64_t>(v);
    }
  }
  JsonField(std::string_view k, double v) : key(k), value(v) {}
  JsonField(std::string_view k, std::string_view v) : key(k), value(std::string(v)) {}
  JsonField(std::string_view k, const char* v) : key(k), value(std::string(v)) {}
  JsonField(std::string_view k, const std::string& v) : key(k), value(v) {}
  JsonField(std::string_view k, std::vector<std::int32_t> v) : key(k), value(std::move(v)) {}
  JsonField(std::string_view k, std::vector<std::int64_t> v) : key(k), value(std::move(v)) {}

  std::string_view key;
  Value value;
};

/// Numbers that are not finite become null; bytes that are not UTF-8 become U+FFFD.
class JsonObject {
 public:
  JsonObject(std::initializer_list<JsonField> fields = {});
  JsonObject(JsonObject&&) noexcept;
  JsonObject& operator=(JsonObject&&) noexcept;
  ~JsonObject();

  /// A list of objects.
  JsonObject& add(std::string_view key, const std::vector<JsonObject>& values);

  /// One line of JSON.
  std::string dump() const;
  /// "key   value", a line each.
  std::string table() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace ridge
