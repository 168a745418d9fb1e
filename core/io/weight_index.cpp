#include "core/io/weight_index.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "core/base/error.h"
#include "core/io/quote.h"

namespace ridge {
namespace {

using Json = nlohmann::json;

constexpr int kMaxDepth = 32;  // of what an index may hold beside the weight map

// Keeps the strings of the top-level "weight_map"; everything else is passed over.
class IndexReader final : public nlohmann::json_sax<Json> {
 public:
  IndexReader(std::string file, std::map<std::string, std::string>& map)
      : file_(std::move(file)), map_(map) {}

  bool null() override { return pass_over(); }
  bool boolean(bool) override { return pass_over(); }
  bool number_integer(number_integer_t) override { return pass_over(); }
  bool number_unsigned(number_unsigned_t) override { return pass_over(); }
  bool number_float(number_float_t, const string_t&) override { return pass_over(); }
  bool binary(binary_t&) override { return pass_over(); }

  bool string(string_t& value) override {
    if (!in_map_) return pass_over();
    check_file_name(value);
    if (!map_.emplace(key_, std::move(value)).second) fail_here("lists " + shown(key_) + " twice");
    return true;
  }

  bool start_object(std::size_t) override {
    if (depth_ == 1 && at_map_) {
      in_map_ = true;
      at_map_ = false;
    } else {
      pass_over();
    }
    return go_deeper();
  }

  bool key(string_t& name) override {
    at_map_ = depth_ == 1 && name == "weight_map";
    if (at_map_ && std::exchange(seen_, true)) fail_here("has weight_map twice");
    key_ = std::move(name);
    return true;
  }

  bool end_object() override {
    if (--depth_ == 1) in_map_ = false;
    return true;
  }

  bool start_array(std::size_t) override { return pass_over() && go_deeper(); }

  bool end_array() override {
    --depth_;
    return true;
  }

  bool parse_error(std::size_t position, const std::string&, const Json::exception&) override {
    fail_here(fmt::format("is not valid JSON at byte {}", position));
  }

  bool seen() const { return seen_; }

 private:
  bool pass_over() {
    if (in_map_) fail_here(fmt::format("gives {} something else than a file name", shown(key_)));
    if (at_map_) fail_here("has a weight_map that is not an object");
    return true;
  }

  bool go_deeper() {
    if (++depth_ > kMaxDepth) fail_here(fmt::format("nests deeper than {} levels", kMaxDepth));
    return true;
  }

  void check_file_name(const std::string& name) {
    const bool plain = !name.empty() &&
                       name.find_first_of(std::string_view("/\\\0", 3)) == std::string::npos &&
                       name.find("..") == std::string::npos && name != ".";
    if (!plain) {
      fail_here(fmt::format("puts {} into {}, which is not a plain file name", shown(key_), shown(name)));
    }
  }

  [[noreturn]] void fail_here(const std::string& what) { fail_user("weight index '{}' {}", file_, what); }

  std::string file_;
  std::map<std::string, std::string>& map_;
  std::string key_;
  int depth_ = 0;
  bool at_map_ = false;  // the value that comes next is the weight map
  bool in_map_ = false;
  bool seen_ = false;
};

}  // namespace

std::map<std::string, std::string> parse_weight_index(std::string_view json, const std::string& file) {
  require(is_utf8(json), "weight index '{}' is not valid UTF-8", file);
  const std::size_t nul = json.find('\0');  // the JSON parser would take it for the end
  require(nul == json.npos, "weight index '{}' is not valid JSON at byte {}", file, nul + 1);
  std::map<std::string, std::string> map;
  IndexReader reader(file, map);
  Json::sax_parse(json.begin(), json.end(), &reader);
  require(reader.seen(), "weight index '{}' has no weight_map", file);
  return map;
}

std::string format_weight_index(const std::map<std::string, std::string>& weight_map,
                                std::uint64_t total_bytes) {
  const Json index{{"metadata", {{"total_size", total_bytes}}}, {"weight_map", weight_map}};
  return index.dump(2) + "\n";
}

}  // namespace ridge
