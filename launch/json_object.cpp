#include "launch/json_object.h"

#include <fmt/core.h>

#include <nlohmann/json.hpp>

namespace ridge {

struct JsonObject::Impl {
  nlohmann::ordered_json json = nlohmann::ordered_json::object();
};

JsonObject::JsonObject(std::initializer_list<JsonField> fields) : impl_(std::make_unique<Impl>()) {
  for (const JsonField& field : fields) {
    std::visit([&](const auto& value) { impl_->json[std::string(field.key)] = value; }, field.value);
  }
}

JsonObject::JsonObject(JsonObject&&) noexcept = default;
JsonObject& JsonObject::operator=(JsonObject&&) noexcept = default;
JsonObject::~JsonObject() = default;

JsonObject& JsonObject::add(std::string_view key, const std::vector<JsonObject>& values) {
  auto list = nlohmann::ordered_json::array();
  for (const JsonObject& value : values) list.push_back(value.impl_->json);
  impl_->json[std::string(key)] = std::move(list);
  return *this;
}

std::string JsonObject::dump() const {
  return impl_->json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

std::string JsonObject::table() const {
  std::string text;
  for (const auto& [key, value] : impl_->json.items()) {
    text += fmt::format("{:<30} {}\n", key, value.is_string() ? value.get<std::string>() : value.dump());
  }
  return text;
}

}  // namespace ridge
