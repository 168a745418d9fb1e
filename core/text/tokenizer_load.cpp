// A tokenizer from a model folder.
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <system_error>

#include "core/base/error.h"
#include "core/text/tokenizer_state.h"

namespace ridge {
namespace {

namespace fs = std::filesystem;

constexpr std::uintmax_t kMostFileBytes = std::uintmax_t{1} << 30;

std::string read_file(const fs::path& path) {
  std::error_code error;
  require(fs::is_regular_file(path, error), "{}: no such file; a model folder holds tokenizer.json",
          path.string());
  const std::uintmax_t size = fs::file_size(path, error);
  require(!error && size <= kMostFileBytes, "{}: cannot be read or is larger than {} bytes", path.string(),
          kMostFileBytes);
  std::string bytes(size, '\0');
  std::ifstream file(path, std::ios::binary);
  file.read(bytes.data(), static_cast<std::streamsize>(size));
  require(file.good() || size == 0, "{}: cannot be read", path.string());
  return bytes;
}

// "bos_token": "<s>" or {"content": "<s>", ...}
std::optional<std::int32_t> named_token(const JsonNode& config, const char* key, const Tokenizer& tokenizer) {
  if (!config.has(key)) return std::nullopt;
  const JsonNode node = config.at(key);
  const std::string content = node.value().is_object() ? node.text("content") : node.as_text();
  const std::optional<std::int32_t> id = tokenizer.token_to_id(content);
  if (!id) node.fail(in_quotes(content) + " is no token of tokenizer.json");
  return id;
}

}  // namespace

Tokenizer Tokenizer::load(const std::string& model_dir) {
  std::error_code error;
  const bool is_file = fs::is_regular_file(model_dir, error);
  const fs::path path = is_file ? fs::path(model_dir) : fs::path(model_dir) / "tokenizer.json";
  const std::shared_ptr<TokenizerState> state = parse_tokenizer(read_file(path), path.string());
  const Tokenizer tokenizer{state};
  for (const char* name : {"tokenizer_config.json", "special_tokens_map.json"}) {
    const fs::path config_path = path.parent_path() / name;
    if (!fs::exists(config_path, error)) continue;
    const std::string source = config_path.string();
    const nlohmann::json document = parse_json(read_file(config_path), source);
    const JsonNode config(document, source);
    if (!state->bos) state->bos = named_token(config, "bos_token", tokenizer);
    if (!state->eos) state->eos = named_token(config, "eos_token", tokenizer);
  }
  return tokenizer;
}

}  // namespace ridge
