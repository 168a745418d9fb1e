#include "core/models/config.h"

#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "core/io/file.h"
#include "core/io/json_depth.h"

namespace ridge::models {
namespace {

using Json = nlohmann::json;
constexpr std::size_t kMaxConfigBytes = std::size_t{16} << 20;
constexpr std::int64_t kMaxExtent = std::int64_t{1} << 31;

// Reads fields of one JSON object and names them in messages.
class Fields {
 public:
  Fields(const Json& object, std::string source) : object_(object), source_(std::move(source)) {}

  bool has(const char* key) const { return object_.contains(key) && !object_.at(key).is_null(); }

  std::int64_t integer(const char* key, std::int64_t absent, std::int64_t least = 1) const {
    if (!has(key)) return absent;
    const Json& value = object_.at(key);
    require(value.is_number_integer() || value.is_number_unsigned(), "{}: {} is {}, not an integer", source_,
            key, value.dump());
    const bool big =
        value.is_number_unsigned() && value.get<std::uint64_t>() > static_cast<std::uint64_t>(kMaxExtent);
    const std::int64_t number = big ? kMaxExtent + 1 : value.get<std::int64_t>();
    require(number >= least && number <= kMaxExtent, "{}: {} is {}, outside [{}, {}]", source_, key,
            value.dump(), least, kMaxExtent);
    return number;
  }

  double real(const char* key, double absent) const {
    if (!has(key)) return absent;
    const Json& value = object_.at(key);
    require(value.is_number(), "{}: {} is {}, not a number", source_, key, value.dump());
    const double number = value.get<double>();
    require(std::isfinite(number) && number >= 0, "{}: {} is {}, not a finite number of at least 0", source_,
            key, value.dump());
    return number;
  }

  bool boolean(const char* key, bool absent) const {
    if (!has(key)) return absent;
    const Json& value = object_.at(key);
    require(value.is_boolean(), "{}: {} is {}, not true or false", source_, key, value.dump());
    return value.get<bool>();
  }

  std::string text(const char* key, const std::string& absent) const {
    if (!has(key)) return absent;
    const Json& value = object_.at(key);
    require(value.is_string(), "{}: {} is {}, not a string", source_, key, value.dump());
    return value.get<std::string>();
  }

  /// An id, a list of ids, or nothing.
  std::vector<std::int64_t> ids(const char* key) const {
    std::vector<std::int64_t> list;
    if (!has(key)) return list;
    const Json& value = object_.at(key);
    if (!value.is_array()) return {integer(key, 0, 0)};
    for (const Json& item : value) {
      require(item.is_number_integer() && item.get<std::int64_t>() >= 0, "{}: {} holds {}, not an id",
              source_, key, item.dump());
      list.push_back(item.get<std::int64_t>());
    }
    return list;
  }

  const Json* object(const char* key) const {
    if (!has(key)) return nullptr;
    require(object_.at(key).is_object(), "{}: {} is not an object", source_, key);
    return &object_.at(key);
  }

  const std::string& source() const { return source_; }

 private:
  const Json& object_;
  std::string source_;
};

// What a family takes where a key is absent (transformers' configuration classes).
struct Family {
  const char* model_type;
  std::int64_t vocab_size, intermediate_size, kv_heads, max_position;
};
constexpr Family kFamilies[] = {{"llama", 32000, 11008, 0, 2048},
                                {"qwen2", 151936, 22016, 32, 32768},
                                {"mistral", 32000, 14336, 8, 131072}};

std::string type_of_architecture(const Fields& fields, const Json& json) {
  if (!json.contains("architectures") || !json.at("architectures").is_array() ||
      json.at("architectures").empty())
    return "";
  const Json& first = json.at("architectures").at(0);
  const std::string name = first.is_string() ? first.get<std::string>() : first.dump();
  if (name == "LlamaForCausalLM") return "llama";
  if (name == "Qwen2ForCausalLM") return "qwen2";
  if (name == "MistralForCausalLM") return "mistral";
  fail_user("{}: architecture {} is unknown: use LlamaForCausalLM, Qwen2ForCausalLM or MistralForCausalLM",
            fields.source(), name);
}

const Family& family_of(const Fields& fields, const Json& json) {
  const std::string by_class = type_of_architecture(fields, json);
  const std::string type = fields.text("model_type", by_class);
  require(!type.empty(), "{}: neither model_type nor architectures says what the model is", fields.source());
  require(by_class.empty() || by_class == type, "{}: model_type is {} but architectures names a {}",
          fields.source(), type, by_class);
  for (const Family& family : kFamilies) {
    if (type == family.model_type) return family;
  }
  fail_user("{}: model_type {} is unknown: use llama, qwen2 or mistral", fields.source(), type);
}

std::string read_activation(const Fields& fields) {
  const std::string name = fields.text("hidden_act", "silu");
  if (name == "silu" || name == "swish") return "silu";
  if (name == "gelu") return "gelu";
  if (name == "gelu_pytorch_tanh" || name == "gelu_new") return "gelu_tanh";
  fail_user("{}: hidden_act {} is unknown: use silu, gelu or gelu_pytorch_tanh", fields.source(), name);
}

kernels::RopeScaling::Kind rope_kind(const Fields& fields, const std::string& name) {
  using Kind = kernels::RopeScaling::Kind;
  if (name == "default") return Kind::none;
  if (name == "linear") return Kind::linear;
  if (name == "dynamic") return Kind::dynamic;
  if (name == "yarn") return Kind::yarn;
  if (name == "llama3") return Kind::llama3;
  fail_user("{}: rope_type {} is unknown: use default, linear, dynamic, yarn or llama3", fields.source(),
            name);
}

// rope_scaling (v4) and rope_parameters (v5) in one object; the newer spelling wins.
Json merged_rope(const Fields& fields) {
  Json merged = Json::object();
  if (const Json* old = fields.object("rope_scaling")) merged.update(*old);
  if (const Json* now = fields.object("rope_parameters")) {
    if (const auto full = now->find("full_attention"); full != now->end() && full->is_object()) {
      merged.update(*full);
    } else {
      merged.update(*now);
    }
  }
  return merged;
}

nn::RopeConfig read_rope(const Fields& fields, std::int64_t head_dim, std::int64_t max_position) {
  const Json merged = merged_rope(fields);
  const Fields rope(merged, fields.source() + ": rope parameters");
  nn::RopeConfig config;
  config.theta = rope.real("rope_theta", fields.real("rope_theta", 10000));
  require(config.theta > 0, "{}: rope_theta is {}, not above 0", fields.source(), config.theta);
  config.head_dim = head_dim;
  config.max_position = max_position;
  kernels::RopeScaling& s = config.scaling;
  s.kind = rope_kind(fields, rope.text("rope_type", rope.text("type", "default")));
  s.factor = rope.real("factor", 0);
  s.low_freq_factor = rope.real("low_freq_factor", 0);
  s.high_freq_factor = rope.real("high_freq_factor", 0);
  s.original_max_position = rope.real("original_max_position_embeddings", 0);
  s.beta_fast = rope.real("beta_fast", 32);
  s.beta_slow = rope.real("beta_slow", 1);
  s.attention_factor = rope.real("attention_factor", 0);
  s.mscale = rope.real("mscale", 0);
  s.mscale_all_dim = rope.real("mscale_all_dim", 0);
  s.truncate = rope.boolean("truncate", true);
  try {
    kernels::rotary_inv_freq(config.theta, head_dim, s, max_position, max_position);
  } catch (const UserError& error) {
    fail_user("{}: {}", fields.source(), error.what());  // says now what has no meaning
  }
  return config;
}

void read_attention(const Fields& fields, const Family& family, ModelConfig& c) {
  c.heads = fields.integer("num_attention_heads", 32);
  c.kv_heads = fields.integer("num_key_value_heads", family.kv_heads > 0 ? family.kv_heads : c.heads);
  require(c.heads % c.kv_heads == 0, "{}: num_attention_heads {} is not a multiple of num_key_value_heads {}",
          fields.source(), c.heads, c.kv_heads);
  require(fields.has("head_dim") || c.hidden_size % c.heads == 0,
          "{}: hidden_size {} is not a multiple of num_attention_heads {} and head_dim is not given",
          fields.source(), c.hidden_size, c.heads);
  c.head_dim = fields.integer("head_dim", c.hidden_size / c.heads);
  require(c.head_dim % 2 == 0 && c.head_dim <= 1024, "{}: head_dim {} is not even or above 1024",
          fields.source(), c.head_dim);
  const bool all_biased = c.model_type == "llama" && fields.boolean("attention_bias", false);
  c.qkv_bias = c.model_type == "qwen2" || all_biased;
  c.output_bias = all_biased;
  c.mlp_bias = c.model_type == "llama" && fields.boolean("mlp_bias", false);
}

void read_window(const Fields& fields, const Json& json, ModelConfig& c) {
  if (c.model_type == "mistral") {
    const bool off = json.contains("sliding_window") && json.at("sliding_window").is_null();
    c.sliding_window = off ? 0 : fields.integer("sliding_window", 4096);
  }
  if (c.model_type == "qwen2" && fields.boolean("use_sliding_window", false)) {
    c.sliding_window = fields.integer("sliding_window", 4096);
    c.sliding_from = fields.integer("max_window_layers", 28, 0);
  }
}

DType read_dtype(const Fields& fields) {
  const std::string name = fields.text("dtype", fields.text("torch_dtype", "float32"));
  if (name == "float32") return DType::f32;
  if (name == "bfloat16") return DType::bf16;
  if (name == "float16") return DType::f16;
  fail_user("{}: dtype {} is unknown: use float32, bfloat16 or float16", fields.source(), name);
}

// Sizes are multiplied freely after this: bytes of all weights, twice over, stay within 64 bits.
void check_products(const ModelConfig& c, const std::string& source) {
  const double hidden = static_cast<double>(c.hidden_size), layers = static_cast<double>(c.layers);
  const double widths = static_cast<double>(c.heads * c.head_dim) + static_cast<double>(c.intermediate_size);
  const double parameters = hidden * (2 * static_cast<double>(c.vocab_size) + 4 * layers * widths);
  require(parameters < 0x1p58,
          "{}: vocab_size {}, hidden_size {}, intermediate_size {}, num_attention_heads {} and "
          "num_hidden_layers {} make {:.0f} parameters: more than any machine holds",
          source, c.vocab_size, c.hidden_size, c.intermediate_size, c.heads, c.layers, parameters);
}

Json parse_object(std::string_view text, const std::string& source) {
  check_json_depth(text, source);
  Json json = Json::parse(text.begin(), text.end(), nullptr, false);
  require(!json.is_discarded(), "{}: not valid JSON", source);
  require(json.is_object(), "{}: not a JSON object", source);
  return json;
}

}  // namespace

ModelConfig ModelConfig::parse(std::string_view text, const std::string& source) {
  const Json json = parse_object(text, source);
  const Fields fields(json, source);
  const Family& family = family_of(fields, json);
  ModelConfig c;
  c.model_type = family.model_type;
  c.vocab_size = fields.integer("vocab_size", family.vocab_size);
  c.hidden_size = fields.integer("hidden_size", 4096);
  c.intermediate_size = fields.integer("intermediate_size", family.intermediate_size);
  c.layers = fields.integer("num_hidden_layers", 32);
  require(c.layers <= 100000, "{}: num_hidden_layers is {}, above 100000", source, c.layers);
  c.max_position = fields.integer("max_position_embeddings", family.max_position);
  c.rms_norm_eps = fields.real("rms_norm_eps", 1e-6);
  c.initializer_range = fields.real("initializer_range", 0.02);
  c.activation = read_activation(fields);
  c.tied = fields.boolean("tie_word_embeddings", false);
  read_attention(fields, family, c);
  check_products(c, source);
  read_window(fields, json, c);
  c.rope = read_rope(fields, c.head_dim, c.max_position);
  c.dtype = read_dtype(fields);
  const auto bos = fields.ids("bos_token_id");
  c.bos_id = !bos.empty() ? bos.front() : (c.model_type == "qwen2" || json.contains("bos_token_id") ? -1 : 1);
  c.eos_ids = fields.ids("eos_token_id");
  if (c.eos_ids.empty() && c.model_type != "qwen2" && !json.contains("eos_token_id")) c.eos_ids = {2};
  c.json = std::string(text);
  return c;
}

ModelConfig ModelConfig::load(const std::string& folder) {
  const std::string path = folder + "/config.json";
  ModelConfig config = parse(read_text_file(path, kMaxConfigBytes), path);
  const std::string generation = folder + "/generation_config.json";
  if (std::filesystem::exists(generation)) {
    const Json json = parse_object(read_text_file(generation, kMaxConfigBytes), generation);
    for (const std::int64_t id : Fields(json, generation).ids("eos_token_id")) {
      if (std::find(config.eos_ids.begin(), config.eos_ids.end(), id) == config.eos_ids.end())
        config.eos_ids.push_back(id);
    }
  }
  return config;
}

std::int64_t ModelConfig::parameters_without_embedding() const {
  const std::int64_t q = heads * head_dim, kv = kv_heads * head_dim;
  std::int64_t block =
      hidden_size * (q + 2 * kv) + q * hidden_size + 3 * hidden_size * intermediate_size + 2 * hidden_size;
  if (qkv_bias) block += q + 2 * kv;
  if (output_bias) block += hidden_size;
  if (mlp_bias) block += 2 * intermediate_size + hidden_size;
  return layers * block + hidden_size + vocab_size * hidden_size;  // the output layer counts, tied or not
}

std::int64_t ModelConfig::parameters() const {
  return parameters_without_embedding() + (tied ? 0 : vocab_size * hidden_size);
}

double ModelConfig::train_flops_per_token(std::int64_t sequence_length) const {
  const double n = static_cast<double>(parameters_without_embedding());
  return 6 * n + 6.0 * static_cast<double>(layers * heads * head_dim) * static_cast<double>(sequence_length);
}

std::int64_t ModelConfig::kv_bytes_per_token(DType type) const {
  return 2 * layers * kv_heads * head_dim * static_cast<std::int64_t>(size_of(type));
}

}  // namespace ridge::models
