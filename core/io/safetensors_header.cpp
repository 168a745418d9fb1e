#include "core/io/safetensors_header.h"

#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "core/base/error.h"
#include "core/io/quote.h"

namespace ridge {
namespace {

using Json = nlohmann::json;

constexpr std::size_t kMaxDims = 64;
constexpr std::string_view kMetadataKey = "__metadata__";

// Walks the header's events; `state_` says which value the schema wants next.
class HeaderReader final : public nlohmann::json_sax<Json> {
 public:
  HeaderReader(std::string file, SafetensorsHeader& header) : file_(std::move(file)), header_(header) {}

  bool null() override { return unexpected("null"); }
  bool boolean(bool) override { return unexpected("a boolean"); }
  bool number_integer(number_integer_t value) override { return unexpected(fmt::format("{}", value)); }
  bool number_float(number_float_t, const string_t& text) override { return unexpected(text); }
  bool binary(binary_t&) override { return unexpected("bytes"); }

  bool number_unsigned(number_unsigned_t value) override {
    if (state_ == State::shape_item) return add_dim(value);
    if (state_ == State::offset_item) return add_offset(value);
    return unexpected(fmt::format("{}", value));
  }

  bool string(string_t& value) override {
    if (state_ == State::dtype) {
      item_.dtype = std::move(value);
      state_ = State::tensor;
    } else if (state_ == State::metadata_value) {
      if (!header_.metadata.emplace(key_, std::move(value)).second) fail_twice();
      state_ = State::metadata;
    } else {
      unexpected("the string " + shown(value));
    }
    return true;
  }

  bool start_object(std::size_t) override {
    switch (state_) {
      case State::start:
        state_ = State::root;
        return true;
      case State::metadata_object:
        state_ = State::metadata;
        return true;
      case State::tensor_object:
        state_ = State::tensor;
        return true;
      default:
        return unexpected("an object");
    }
  }

  bool key(string_t& name) override {
    if (state_ == State::root) return start_item(std::move(name));
    if (state_ == State::tensor) return start_field(name);
    key_ = std::move(name);
    state_ = State::metadata_value;
    return true;
  }

  bool end_object() override {
    if (state_ == State::tensor) finish_item();
    state_ = state_ == State::root ? State::done : State::root;
    return true;
  }

  bool start_array(std::size_t) override {
    if (state_ == State::shape) {
      state_ = State::shape_item;
    } else if (state_ == State::offsets) {
      state_ = State::offset_item;
    } else {
      unexpected("an array");
    }
    return true;
  }

  bool end_array() override {
    const bool two = state_ != State::offset_item || offsets_seen_ == 2;
    if (!two) fail_here(fmt::format("data_offsets has {} numbers instead of 2", offsets_seen_));
    state_ = State::tensor;
    return true;
  }

  bool parse_error(std::size_t position, const std::string&, const Json::exception&) override {
    fail_safetensors(file_, fmt::format("its header is not valid JSON at byte {} of it", position));
  }

 private:
  enum class State {
    start,
    root,
    metadata_object,
    metadata,
    metadata_value,
    tensor_object,
    tensor,
    dtype,
    shape,
    shape_item,
    offsets,
    offset_item,
    done
  };

  bool start_item(std::string name) {
    if (!names_.insert(name).second) fail_safetensors(file_, shown(name) + " is in the header twice");
    const bool metadata = name == kMetadataKey;
    state_ = metadata ? State::metadata_object : State::tensor_object;
    item_ = {};
    item_.name = std::move(name);
    fields_ = {};
    offsets_seen_ = 0;
    return true;
  }

  bool start_field(const std::string& name) {
    const std::array<std::pair<std::string_view, State>, 3> kFields{
        {{"dtype", State::dtype}, {"shape", State::shape}, {"data_offsets", State::offsets}}};
    key_ = name;
    for (std::size_t i = 0; i < kFields.size(); ++i) {
      if (kFields[i].first != name) continue;
      if (std::exchange(fields_[i], true)) fail_twice();
      state_ = kFields[i].second;
      return true;
    }
    fail_here("has the unknown field " + shown(name));
  }

  void finish_item() {
    if (!fields_[0]) fail_here("has no dtype");
    if (!fields_[1]) fail_here("has no shape");
    if (!fields_[2]) fail_here("has no data_offsets");
    header_.items.push_back(std::move(item_));
  }

  bool add_dim(std::uint64_t value) {
    if (value > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
      fail_here(fmt::format("dim {} of its shape is {}, which is too large", item_.shape.size(), value));
    }
    if (item_.shape.size() == kMaxDims) fail_here(fmt::format("has more than {} dims", kMaxDims));
    item_.shape.push_back(static_cast<std::int64_t>(value));
    return true;
  }

  bool add_offset(std::uint64_t value) {
    if (offsets_seen_ == 2) fail_here("data_offsets has more than 2 numbers");
    (offsets_seen_++ == 0 ? item_.begin : item_.end) = value;
    return true;
  }

  // What the schema wants where `state_` stands, for messages.
  std::string wanted() const {
    switch (state_) {
      case State::start:
        return "the header must be an object";
      case State::metadata_object:
        return "__metadata__ must be an object";
      case State::metadata_value:
        return fmt::format("__metadata__ {} must be a string", shown(key_));
      case State::tensor_object:
        return fmt::format("tensor {} must be an object", shown(item_.name));
      case State::dtype:
        return fmt::format("tensor {}: dtype must be a string", shown(item_.name));
      case State::shape:
        return fmt::format("tensor {}: shape must be an array of numbers", shown(item_.name));
      case State::offsets:
        return fmt::format("tensor {}: data_offsets must be an array of 2 numbers", shown(item_.name));
      default:
        return fmt::format("tensor {}: {} must hold whole numbers from 0 up", shown(item_.name), key_);
    }
  }

  [[noreturn]] bool unexpected(const std::string& found) {
    fail_safetensors(file_, fmt::format("{}, found {}", wanted(), found));
  }
  [[noreturn]] void fail_twice() {
    fail_safetensors(file_, fmt::format("{} has the key {} twice", shown(item_.name), shown(key_)));
  }
  [[noreturn]] void fail_here(const std::string& what) {
    fail_safetensors(file_, fmt::format("tensor {} {}", shown(item_.name), what));
  }

  std::string file_;
  SafetensorsHeader& header_;
  State state_ = State::start;
  std::set<std::string> names_;
  SafetensorsItem item_;
  std::string key_;
  std::array<bool, 3> fields_{};
  int offsets_seen_ = 0;
};

std::string json_string(const std::string& text) {
  require(is_utf8(text), "cannot write {} to a safetensors file: it is not valid UTF-8", shown(text));
  return Json(text).dump();
}

std::string format_item(const SafetensorsItem& item) {
  std::string dims;
  for (const std::int64_t dim : item.shape) dims += fmt::format("{}{}", dims.empty() ? "" : ",", dim);
  return fmt::format(R"({}:{{"dtype":"{}","shape":[{}],"data_offsets":[{},{}]}})", json_string(item.name),
                     item.dtype, dims, item.begin, item.end);
}

std::string format_metadata(const std::map<std::string, std::string>& metadata) {
  std::string text;
  for (const auto& [key, value] : metadata) {
    text += fmt::format("{}{}:{}", text.empty() ? "" : ",", json_string(key), json_string(value));
  }
  return fmt::format("\"{}\":{{{}}}", kMetadataKey, text);
}

}  // namespace

SafetensorsHeader parse_safetensors_header(std::string_view json, const std::string& file) {
  if (json.empty() || json.front() != '{') fail_safetensors(file, "its header does not start with '{'");
  if (!is_utf8(json)) fail_safetensors(file, "its header is not valid UTF-8");
  const std::size_t nul = json.find('\0');  // the JSON parser would take it for the end
  if (nul != json.npos)
    fail_safetensors(file, fmt::format("its header is not valid JSON at byte {} of it", nul + 1));
  SafetensorsHeader header;
  HeaderReader reader(file, header);
  Json::sax_parse(json.begin(), json.end(), &reader);
  return header;
}

std::string format_safetensors_header(const SafetensorsHeader& header) {
  static_assert(std::endian::native == std::endian::little);
  std::string json = "{";
  if (!header.metadata.empty()) json += format_metadata(header.metadata);
  for (const SafetensorsItem& item : header.items) {
    if (json.size() > 1) json += ',';
    json += format_item(item);
  }
  json += '}';
  json.resize((json.size() + 7) / 8 * 8, ' ');
  const std::uint64_t length = json.size();
  std::string text(sizeof(length), '\0');
  std::memcpy(text.data(), &length, sizeof(length));
  return text + json;
}

void fail_safetensors(const std::string& file, const std::string& what) {
  fail_user("invalid safetensors file '{}': {}", file, what);
}

}  // namespace ridge
