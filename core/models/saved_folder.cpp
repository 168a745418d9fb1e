#include "core/models/saved_folder.h"

#include <algorithm>
#include <filesystem>
#include <iterator>
#include <nlohmann/json.hpp>

#include "core/models/stored_tensor.h"

namespace ridge::models {
namespace {

constexpr const char* kCompanions[] = {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
                                       "generation_config.json", "chat_template.jinja"};

}  // namespace

std::string config_text(const ModelConfig& config, DType dtype, const std::string& quantization) {
  nlohmann::ordered_json json = nlohmann::ordered_json::parse(config.json);
  json.erase(json.contains("dtype") ? "torch_dtype" : "dtype");
  json[json.contains("dtype") ? "dtype" : "torch_dtype"] = torch_name(dtype);
  json["tie_word_embeddings"] = config.tied;
  json["model_type"] = config.model_type;
  if (!json.contains("architectures")) {
    const std::string& type = config.model_type;
    json["architectures"] = {type == "llama"   ? "LlamaForCausalLM"
                             : type == "qwen2" ? "Qwen2ForCausalLM"
                                               : "MistralForCausalLM"};
  }
  json.erase("quantization_config");
  json.erase("compression_config");
  if (!quantization.empty()) json["quantization_config"] = nlohmann::ordered_json::parse(quantization);
  return json.dump(2) + "\n";
}

void copy_companions(const std::string& source, const std::string& folder) {
  for (const char* name : kCompanions) {
    const std::filesystem::path from = std::filesystem::path(source) / name;
    if (!source.empty() && std::filesystem::exists(from))
      std::filesystem::copy_file(from, std::filesystem::path(folder) / name);
  }
}

bool is_companion(std::string_view name) {
  return std::ranges::find(kCompanions, name) != std::end(kCompanions);
}

}  // namespace ridge::models
