// Which layers are adapted, and how: PEFT's adapter_config.json.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace ridge::lora {

/// A whole-name pattern (PCRE2, Perl syntax as Python's re). UserError for one that does not compile.
bool matches_pattern(const std::string& pattern, std::string_view name);

struct LoraConfig {
  std::int64_t rank = 8;
  double alpha = 8;
  double dropout = 0;
  bool use_rslora = false;
  /// Names: a layer matches one that it equals or ends with after a dot. "all-linear": all but the output
  /// layer.
  std::vector<std::string> targets;
  /// A pattern for the whole name, in place of `targets`, where not empty.
  std::string target_pattern;
  std::vector<std::string> exclude;
  std::string exclude_pattern;
  std::vector<std::int64_t> layers;                  // layers_to_transform; empty: all
  std::map<std::string, std::int64_t> rank_pattern;  // pattern of the name's end -> rank
  std::map<std::string, double> alpha_pattern;
  std::string base_model;  // base_model_name_or_path

  bool targets_layer(const std::string& path) const;
  std::int64_t rank_of(const std::string& path) const;
  double alpha_of(const std::string& path) const;
  /// alpha / rank, or alpha / sqrt(rank) with rsLoRA (Kalajdzievski, 2023).
  double scaling_of(const std::string& path) const;

  /// From the text of an adapter_config.json. UserError for what is set and not supported; `notes` gets
  /// unknown keys.
  static LoraConfig parse(std::string_view json, const std::string& source, std::vector<std::string>& notes);
  std::string to_json() const;
};

}  // namespace ridge::lora
