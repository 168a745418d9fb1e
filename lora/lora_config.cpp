#define PCRE2_CODE_UNIT_WIDTH 8
#include "lora/lora_config.h"

#include <pcre2.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>

#include "core/base/error.h"
#include "core/io/json_depth.h"

namespace ridge::lora {
namespace {

using Json = nlohmann::ordered_json;

bool ends_with_name(std::string_view path, const std::string& name) {
  if (path == name) return true;
  return path.size() > name.size() && path.ends_with(name) && path[path.size() - name.size() - 1] == '.';
}

bool is_output_layer(std::string_view path) { return path == "lm_head"; }

// The index in "...layers.N....", or -1.
std::int64_t layer_index(std::string_view path) {
  const std::size_t at = path.find("layers.");
  if (at == std::string_view::npos) return -1;
  std::int64_t index = 0;
  bool any = false;
  for (const char c : path.substr(at + 7)) {
    if (c < '0' || c > '9' || index > (1 << 20)) break;
    index = index * 10 + (c - '0');
    any = true;
  }
  return any ? index : -1;
}

template <class T>
T overridden(const std::map<std::string, T>& patterns, const std::string& path, T otherwise) {
  for (const auto& [pattern, value] : patterns) {
    if (matches_pattern("(.*\\.)?(" + pattern + ")", path)) return value;
  }
  return otherwise;
}

bool names_or_pattern_match(const std::vector<std::string>& names, const std::string& pattern,
                            const std::string& path) {
  if (!pattern.empty()) return matches_pattern(pattern, path);
  return std::any_of(names.begin(), names.end(),
                     [&](const std::string& name) { return ends_with_name(path, name); });
}

// Keys whose default is the only value that is supported.
const std::set<std::string>& keys_that_must_be_off() {
  static const std::set<std::string> keys{
      "use_dora",   "fan_in_fan_out",  "modules_to_save",         "layer_replication",
      "lora_bias",  "megatron_config", "trainable_token_indices", "target_parameters",
      "use_qalora", "arrow_config",    "alora_invocation_tokens", "use_bdlora"};
  return keys;
}

const std::set<std::string>& keys_without_effect() {
  static const std::set<std::string> keys{"peft_type",
                                          "task_type",
                                          "base_model_name_or_path",
                                          "revision",
                                          "inference_mode",
                                          "r",
                                          "lora_alpha",
                                          "lora_dropout",
                                          "target_modules",
                                          "exclude_modules",
                                          "bias",
                                          "use_rslora",
                                          "rank_pattern",
                                          "alpha_pattern",
                                          "layers_to_transform",
                                          "layers_pattern",
                                          "init_lora_weights",
                                          "megatron_core",
                                          "loftq_config",
                                          "eva_config",
                                          "corda_config",
                                          "auto_mapping",
                                          "peft_version",
                                          "qalora_group_size",
                                          "ensure_weight_tying",
                                          "runtime_config",
                                          "lora_ga_config"};
  return keys;
}

bool is_off(const Json& value) {
  return value.is_null() || (value.is_boolean() && !value.get<bool>()) ||
         (value.is_array() && value.empty()) || (value.is_object() && value.empty());
}

// The text of a key, or `absent` where it is missing or null.
std::string text_value(const Json& json, const char* key, const std::string& absent,
                       const std::string& source) {
  if (!json.contains(key) || json.at(key).is_null()) return absent;
  require(json.at(key).is_string(), "{}: {} is {}, not a string", source, key, json.at(key).dump());
  return json.at(key).get<std::string>();
}

double number(const Json& json, const char* key, double absent, const std::string& source) {
  if (!json.contains(key) || json.at(key).is_null()) return absent;
  require(json.at(key).is_number() && std::isfinite(json.at(key).get<double>()), "{}: {} is {}, not a number",
          source, key, json.at(key).dump());
  return json.at(key).get<double>();
}

std::int64_t rank_value(const Json& value, const char* key, const std::string& source) {
  require(value.is_number_integer() && value.get<std::int64_t>() >= 1 && value.get<std::int64_t>() <= 65536,
          "{}: {} is {}, not an integer in [1, 65536]", source, key, value.dump());
  return value.get<std::int64_t>();
}

// Says now what does not compile.
void check_pattern(const std::string& pattern, const char* key, const std::string& source) {
  try {
    matches_pattern(pattern, "");
  } catch (const UserError& error) {
    fail_user("{}: {}: {}", source, key, error.what());
  }
}

// A list of names, or one pattern.
void read_names(const Json& json, const char* key, std::vector<std::string>& names, std::string& pattern,
                const std::string& source) {
  if (!json.contains(key) || json.at(key).is_null()) return;
  const Json& value = json.at(key);
  if (value.is_string()) {
    const auto text = value.get<std::string>();
    if (text == "all-linear") {
      names = {text};
    } else {
      pattern = text;
      check_pattern(pattern, key, source);
    }
    return;
  }
  require(value.is_array(), "{}: {} is {}, not a list or a pattern", source, key, value.dump());
  for (const Json& item : value) {
    require(item.is_string(), "{}: {} holds {}, not a name", source, key, item.dump());
    names.push_back(item.get<std::string>());
  }
}

void read_layers(const Json& json, LoraConfig& config, const std::string& source) {
  if (!json.contains("layers_to_transform") || json.at("layers_to_transform").is_null()) return;
  const Json& value = json.at("layers_to_transform");
  const Json list = value.is_array() ? value : Json::array({value});
  for (const Json& item : list) {
    require(item.is_number_integer(), "{}: layers_to_transform holds {}, not an index", source, item.dump());
    config.layers.push_back(item.get<std::int64_t>());
  }
}

void read_patterns(const Json& json, LoraConfig& config, const std::string& source) {
  for (const char* key : {"rank_pattern", "alpha_pattern"}) {
    if (!json.contains(key) || json.at(key).is_null()) continue;
    require(json.at(key).is_object(), "{}: {} is {}, not an object", source, key, json.at(key).dump());
    for (const auto& [pattern, value] : json.at(key).items()) {
      check_pattern(pattern, key, source);
      if (std::string_view(key) == "rank_pattern") {
        config.rank_pattern[pattern] = rank_value(value, key, source);
      } else {
        require(value.is_number() && std::isfinite(value.get<double>()) && value.get<double>() > 0,
                "{}: {} of {} is {}, not a number above 0", source, key, pattern, value.dump());
        config.alpha_pattern[pattern] = value.get<double>();
      }
    }
  }
}

void check_supported(const Json& json, const std::string& source, std::vector<std::string>& notes) {
  const std::string type = text_value(json, "peft_type", "LORA", source);
  require(type == "LORA", "{}: peft_type {} is not supported: only LORA is", source, type);
  const std::string task = text_value(json, "task_type", "CAUSAL_LM", source);
  require(task == "CAUSAL_LM",
          "{}: task_type {} is not supported: models here predict the next token, which is CAUSAL_LM", source,
          task);
  const std::string bias = text_value(json, "bias", "none", source);
  require(bias == "none", "{}: bias {} is not supported: only none is", source, bias);
  for (const auto& [key, value] : json.items()) {
    if (keys_that_must_be_off().contains(key)) {
      require(is_off(value), "{}: {} = {} is not supported: retrain the adapter without it", source, key,
              value.dump());
    } else if (!keys_without_effect().contains(key) && !is_off(value)) {
      notes.push_back(fmt::format("{}: unknown key {} is ignored", source, key));
    }
  }
}

struct CodeDeleter {
  void operator()(pcre2_code* code) const { pcre2_code_free(code); }
};
struct MatchDeleter {
  void operator()(pcre2_match_data* match) const { pcre2_match_data_free(match); }
};
struct ContextDeleter {
  void operator()(pcre2_match_context* context) const { pcre2_match_context_free(context); }
};

}  // namespace

bool matches_pattern(const std::string& pattern, std::string_view name) {
  int error = 0;
  PCRE2_SIZE where = 0;
  const std::unique_ptr<pcre2_code, CodeDeleter> code(
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                    PCRE2_ANCHORED | PCRE2_ENDANCHORED, &error, &where, nullptr));
  require(code != nullptr, "pattern '{}' does not compile at character {}", pattern, where);
  const std::unique_ptr<pcre2_match_data, MatchDeleter> match(
      pcre2_match_data_create_from_pattern(code.get(), nullptr));
  const std::unique_ptr<pcre2_match_context, ContextDeleter> context(pcre2_match_context_create(nullptr));
  pcre2_set_match_limit(context.get(), 100000);
  const int found = pcre2_match(code.get(), reinterpret_cast<PCRE2_SPTR>(name.data()), name.size(), 0, 0,
                                match.get(), context.get());
  require(found >= 0 || found == PCRE2_ERROR_NOMATCH, "pattern '{}' takes too long to match", pattern);
  return found >= 0;
}

bool LoraConfig::targets_layer(const std::string& path) const {
  if (names_or_pattern_match(exclude, exclude_pattern, path)) return false;
  if (!layers.empty() && std::find(layers.begin(), layers.end(), layer_index(path)) == layers.end())
    return false;
  if (target_pattern.empty() && targets.size() == 1 && targets[0] == "all-linear")
    return !is_output_layer(path);
  return names_or_pattern_match(targets, target_pattern, path);
}

std::int64_t LoraConfig::rank_of(const std::string& path) const {
  return overridden(rank_pattern, path, rank);
}

double LoraConfig::alpha_of(const std::string& path) const { return overridden(alpha_pattern, path, alpha); }

double LoraConfig::scaling_of(const std::string& path) const {
  const auto r = static_cast<double>(rank_of(path));
  return alpha_of(path) / (use_rslora ? std::sqrt(r) : r);
}

LoraConfig LoraConfig::parse(std::string_view text, const std::string& source,
                             std::vector<std::string>& notes) {
  check_json_depth(text, source);
  const Json json = Json::parse(text.begin(), text.end(), nullptr, false);
  require(!json.is_discarded() && json.is_object(), "{}: not a JSON object", source);
  check_supported(json, source, notes);
  LoraConfig config;
  if (json.contains("r")) config.rank = rank_value(json.at("r"), "r", source);
  config.alpha = number(json, "lora_alpha", 8, source);
  require(config.alpha > 0,
          "{}: lora_alpha is {}: give a number above 0, else the adapter is off or reversed", source,
          config.alpha);
  config.dropout = number(json, "lora_dropout", 0, source);
  require(config.dropout >= 0 && config.dropout < 1, "{}: lora_dropout is {}, outside [0, 1)", source,
          config.dropout);
  require(!json.contains("use_rslora") || json.at("use_rslora").is_boolean(),
          "{}: use_rslora is not true or false", source);
  config.use_rslora = json.value("use_rslora", false);
  read_names(json, "target_modules", config.targets, config.target_pattern, source);
  read_names(json, "exclude_modules", config.exclude, config.exclude_pattern, source);
  if (!json.contains("target_modules") || json.at("target_modules").is_null())
    config.targets = {"q_proj", "v_proj"};
  read_layers(json, config, source);
  read_patterns(json, config, source);
  config.base_model = text_value(json, "base_model_name_or_path", "", source);
  return config;
}

std::string LoraConfig::to_json() const {
  nlohmann::json json;  // keys sorted, as PEFT writes them
  json["peft_type"] = "LORA";
  json["task_type"] = "CAUSAL_LM";
  json["base_model_name_or_path"] = base_model.empty() ? nlohmann::json(nullptr) : nlohmann::json(base_model);
  json["inference_mode"] = true;
  json["bias"] = "none";
  json["r"] = rank;
  if (alpha == std::floor(alpha)) {
    json["lora_alpha"] = static_cast<std::int64_t>(alpha);
  } else {
    json["lora_alpha"] = alpha;
  }
  json["lora_dropout"] = dropout;
  json["use_rslora"] = use_rslora;
  json["use_dora"] = false;
  json["fan_in_fan_out"] = false;
  json["init_lora_weights"] = true;
  json["modules_to_save"] = nullptr;
  const bool all = target_pattern.empty() && targets.size() == 1 && targets[0] == "all-linear";
  json["target_modules"] = all                      ? nlohmann::json("all-linear")
                           : target_pattern.empty() ? nlohmann::json(targets)
                                                    : nlohmann::json(target_pattern);
  if (!exclude_pattern.empty()) {
    json["exclude_modules"] = exclude_pattern;
  } else if (!exclude.empty()) {
    json["exclude_modules"] = exclude;
  }
  json["layers_to_transform"] = layers.empty() ? nlohmann::json(nullptr) : nlohmann::json(layers);
  json["rank_pattern"] = rank_pattern.empty() ? nlohmann::json::object() : nlohmann::json(rank_pattern);
  json["alpha_pattern"] = alpha_pattern.empty() ? nlohmann::json::object() : nlohmann::json(alpha_pattern);
  return json.dump(2) + "\n";
}

}  // namespace ridge::lora
