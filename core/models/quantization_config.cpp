#include "core/models/quantization_config.h"

#include <array>
#include <nlohmann/json.hpp>

#include "core/base/error.h"
#include "core/io/json_depth.h"
#include "core/models/stored_tensor.h"

namespace ridge::models {
namespace {

using Json = nlohmann::json;
using Method = QuantizationConfig::Method;
using Weights = QuantizationConfig::Weights;

bool has(const Json& json, const char* key) { return json.contains(key) && !json.at(key).is_null(); }

bool boolean(const Json& json, const char* key, bool absent, const std::string& source) {
  if (!has(json, key)) return absent;
  require(json.at(key).is_boolean(), "{}: {} is {}, not true or false", source, key, json.at(key).dump());
  return json.at(key).get<bool>();
}

std::string text(const Json& json, const char* key, const std::string& absent, const std::string& source) {
  if (!has(json, key)) return absent;
  require(json.at(key).is_string(), "{}: {} is {}, not a string", source, key, json.at(key).dump());
  return json.at(key).get<std::string>();
}

// Sizes and bit widths: small numbers, -1 for "no groups".
std::int64_t integer(const Json& json, const char* key, std::int64_t absent, const std::string& source) {
  if (!has(json, key)) return absent;
  const Json& value = json.at(key);
  const bool small = value.is_number_integer() &&
                     (value.is_number_unsigned() ? value.get<std::uint64_t>() <= std::uint64_t{1} << 31
                                                 : value.get<std::int64_t>() >= -1);
  require(small, "{}: {} is {}, not an integer from -1 to 2^31", source, key, value.dump());
  return value.get<std::int64_t>();
}

void require_tile(const Json& json, const char* key, const std::string& source) {
  if (!has(json, key)) return;
  const Json& value = json.at(key);
  require(value == Json::array({kernels::kTile, kernels::kTile}) || value == "128x128",
          "{}: {} is {}: blocks of [{}, {}] are read", source, key, value.dump(), kernels::kTile,
          kernels::kTile);
}

Weights read_weights(const Json& json, const std::string& source) {
  require(json.is_object(), "{}: not an object", source);
  Weights w;
  w.bits = integer(json, "num_bits", 8, source);
  const std::string type = text(json, "type", "int", source);
  require(type == "int" || type == "float", "{}: type is {}: int and float are read", source, type);
  w.floating = type == "float";
  w.symmetric = boolean(json, "symmetric", true, source);
  w.group = integer(json, "group_size", 0, source);
  w.strategy = text(json, "strategy", w.group > 0 ? "group" : w.group < 0 ? "channel" : "tensor", source);
  constexpr std::array kRead = {"tensor", "channel", "group", "block"};
  require(std::find(kRead.begin(), kRead.end(), w.strategy) != kRead.end(),
          "{}: strategy is {}: tensor, channel, group and block are read", source, w.strategy);
  require_tile(json, "block_structure", source);
  const bool known = w.bits == 8 || (w.bits == 4 && !w.floating);
  require(known, "{}: num_bits is {} of type {}: int of 4 and 8 bits and float of 8 are read", source, w.bits,
          type);
  const Json order = json.value("actorder", Json());
  require(order != "group" && order != "dynamic" && order != true,
          "{}: actorder is {}: columns in another order are not read", source, order.dump());
  return w;
}

void require_format(const Json& json, const std::string& source) {
  constexpr std::array kRead = {"pack-quantized",  "int-quantized",   "float-quantized",
                                "naive-quantized", "mixed-precision", "dense"};
  const std::string format = text(json, "format", "dense", source);
  require(std::find(kRead.begin(), kRead.end(), format) != kRead.end(),
          "{}: format is {}: pack-quantized, int-quantized and float-quantized are read", source, format);
}

void read_compressed_tensors(const Json& json, const std::string& source, QuantizationConfig& config) {
  require_format(json, source);
  const Json sparsity = json.value("sparsity_config", Json());
  require(!sparsity.is_object() || sparsity.value("format", Json("dense")) == "dense",
          "{}: sparsity_config is {}: sparse weights are not read", source, sparsity.dump());
  if (!has(json, "config_groups")) return;
  const Json& groups = json.at("config_groups");
  require(groups.is_object(), "{}: config_groups is no object", source);
  for (const auto& [name, group] : groups.items()) {
    const std::string where = fmt::format("{}: config_groups.{}", source, name);
    require(group.is_object(), "{}: not an object", where);
    require_format(group, where);
    if (has(group, "weights")) config.groups.push_back(read_weights(group.at("weights"), where + ".weights"));
    config.quantizes_activations |= has(group, "input_activations") || has(group, "output_activations");
  }
}

void read_bitsandbytes(const Json& json, const std::string& source, QuantizationConfig& config) {
  config.four_bit = boolean(json, "load_in_4bit", boolean(json, "_load_in_4bit", false, source), source);
  config.eight_bit = boolean(json, "load_in_8bit", boolean(json, "_load_in_8bit", false, source), source);
  require(!config.four_bit || !config.eight_bit, "{}: both load_in_4bit and load_in_8bit are true", source);
  if (!config.four_bit) return;
  config.four_bit_type = text(json, "bnb_4bit_quant_type", "fp4", source);
  require(config.four_bit_type == "nf4" || config.four_bit_type == "fp4",
          "{}: bnb_4bit_quant_type is {}: nf4 and fp4 are read", source, config.four_bit_type);
  if (has(json, "bnb_4bit_use_double_quant"))
    config.double_quant = boolean(json, "bnb_4bit_use_double_quant", false, source);
}

Json compressed_weights(const kernels::WeightFormat& f) {
  Json w{{"num_bits", f.bits()},        {"type", f.codes == kernels::Codes::fp8 ? "float" : "int"},
         {"symmetric", !f.zero_points}, {"strategy", f.tiles ? "block" : f.group > 0 ? "group" : "channel"},
         {"group_size", nullptr},       {"block_structure", nullptr},
         {"actorder", nullptr},         {"dynamic", false},
         {"observer", "minmax"},        {"observer_kwargs", Json::object()}};
  if (f.tiles) w["block_structure"] = {f.group, f.group};
  if (f.group > 0 && !f.tiles) w["group_size"] = f.group;
  return w;
}

const char* compressed_format(const kernels::WeightFormat& f) {
  if (f.bits() == 4) return "pack-quantized";
  return f.codes == kernels::Codes::fp8 ? "float-quantized" : "int-quantized";
}

}  // namespace

std::string QuantizationConfig::Weights::text() const {
  return fmt::format("{} bits of {}, {}, strategy {}{}", bits, floating ? "float" : "int",
                     symmetric ? "symmetric" : "with zero points", strategy,
                     strategy == "group" ? fmt::format(" of {}", group) : "");
}

std::string QuantizationConfig::summary() const {
  if (four_bit)
    return fmt::format("{}, {}{}", name_of(method), four_bit_type, double_quant.value_or(false) ? "-dq" : "");
  if (eight_bit) return name_of(method) + ", int8";
  return name_of(method) + (groups.empty() ? "" : ", " + groups.front().text());
}

std::string name_of(Method method) {
  constexpr std::array kNames = {"none", "bitsandbytes", "compressed-tensors", "fp8"};
  return kNames.at(static_cast<std::size_t>(method));
}

QuantizationConfig QuantizationConfig::parse(std::string_view config_json, const std::string& file) {
  check_json_depth(config_json, file);
  const Json whole = Json::parse(config_json.begin(), config_json.end(), nullptr, false);
  require(whole.is_object(), "{}: not a JSON object", file);
  QuantizationConfig config;
  // Old compressed-tensors folders have it as compression_config.
  const char* key = has(whole, "quantization_config") ? "quantization_config" : "compression_config";
  if (!has(whole, key)) return config;
  const Json& json = whole.at(key);
  const std::string source = fmt::format("{}: {}", file, key);
  require(json.is_object(), "{} is no object", source);
  const bool by_bits = has(json, "load_in_4bit") || has(json, "load_in_8bit");
  const std::string method =
      text(json, "quant_method", by_bits ? "bitsandbytes" : "compressed-tensors", source);
  if (method == "bitsandbytes") {
    config.method = Method::bitsandbytes;
    read_bitsandbytes(json, source, config);
  } else if (method == "compressed-tensors") {
    config.method = Method::compressed_tensors;
    read_compressed_tensors(json, source, config);
  } else if (method == "fp8") {
    config.method = Method::fp8;
    require_tile(json, "weight_block_size", source);
    config.quantizes_activations = true;
  } else {
    fail_user("{}: quant_method is {}: bitsandbytes, compressed-tensors and fp8 are read{}", source, method,
              method == "gptq" || method == "awq" || method == "hqq" ? ", this one not yet" : "");
  }
  return config;
}

bool written_by_bitsandbytes(const kernels::WeightFormat& format) { return format.flat(); }

std::string quantization_config_json(const kernels::WeightFormat& f, DType dtype, bool head) {
  const Json skipped = head ? Json::array() : Json::array({"lm_head"});
  if (written_by_bitsandbytes(f)) {
    return Json{{"quant_method", "bitsandbytes"},
                {"load_in_4bit", true},
                {"load_in_8bit", false},
                {"_load_in_4bit", true},
                {"_load_in_8bit", false},
                {"bnb_4bit_quant_type", f.codes == kernels::Codes::nf4 ? "nf4" : "fp4"},
                {"bnb_4bit_use_double_quant", f.double_quant},
                {"bnb_4bit_compute_dtype", torch_name(dtype)},
                {"bnb_4bit_quant_storage", "uint8"},
                {"llm_int8_enable_fp32_cpu_offload", false},
                {"llm_int8_has_fp16_weight", false},
                {"llm_int8_skip_modules", skipped},
                {"llm_int8_threshold", 6.0}}
        .dump();
  }
  // Without a format of its own, compressed-tensors takes int8 alone for pack-quantized.
  const Json group{{"targets", {"Linear"}},
                   {"format", compressed_format(f)},
                   {"weights", compressed_weights(f)},
                   {"input_activations", nullptr},
                   {"output_activations", nullptr}};
  return Json{{"quant_method", "compressed-tensors"}, {"format", compressed_format(f)},
              {"quantization_status", "compressed"},  {"global_compression_ratio", nullptr},
              {"kv_cache_scheme", nullptr},           {"ignore", skipped},
              {"config_groups", {{"group_0", group}}}}
      .dump();
}

}  // namespace ridge::models
