#include "core/models/weights.h"

#include <cstring>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "core/io/file.h"
#include "core/io/weight_folder.h"

namespace ridge::models {
namespace {

constexpr const char* kEmbedding = "model.embed_tokens.weight";
constexpr const char* kHead = "lm_head.weight";
constexpr const char* kCompanions[] = {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
                                       "generation_config.json", "chat_template.jinja"};

std::vector<std::int64_t> extents(const Shape& shape) { return {shape.begin(), shape.end()}; }

std::string shape_text(const std::vector<std::int64_t>& shape) {
  std::string text;
  for (const std::int64_t extent : shape) text += (text.empty() ? "" : ", ") + std::to_string(extent);
  return "[" + text + "]";
}

bool aligned(const TensorEntry& entry, DType dtype) {
  return reinterpret_cast<std::uintptr_t>(entry.data.data()) % size_of(dtype) == 0;
}

// The entry as a tensor of its own dtype: an alias of the mapping, or a copy where bytes are not aligned.
Tensor as_tensor(const TensorEntry& entry, DType dtype, const std::shared_ptr<const WeightFolder>& owner) {
  const Shape shape{std::span<const std::int64_t>(entry.shape)};
  if (aligned(entry, dtype)) return Tensor::borrow(entry.data.data(), shape, dtype, owner);
  const Tensor copy = Tensor::empty(shape, dtype);
  std::memcpy(copy.data(), entry.data.data(), entry.data.size());
  return copy;
}

// The stored tensor of a parameter; a UserError where it is not what the config asks for.
const TensorEntry& entry_of(const std::string& name, const Shape& shape, const WeightFolder& folder) {
  const TensorEntry* entry = folder.find(name);
  require(entry != nullptr, "{}: tensor {} is missing: the config asks for it with shape {}", folder.path(),
          name, to_string(shape));
  require(entry->shape == extents(shape), "{}: tensor {} has shape {}, but config.json says {}",
          folder.path(), name, shape_text(entry->shape), to_string(shape));
  const auto dtype = entry->type();
  require(dtype && is_floating(*dtype), "{}: tensor {} is stored as {}: F32, BF16 or F16 are read",
          folder.path(), name, entry->dtype);
  return *entry;
}

void load_parameter(const nn::Parameter& p, const Tensor& stored, LoadMode mode) {
  if (p.value->device() == Device::cuda) {
    p.value->copy_from(stored);
  } else if (mode == LoadMode::read && stored.dtype() == p.value->dtype()) {
    *p.value = stored;
  } else {
    const PurposeScope purpose(Purpose::weights);
    *p.value = Tensor::empty(p.value->shape(), p.value->dtype());
    p.value->copy_from(stored);
  }
}

// A tied config whose file holds another output layer: the file is right (formats differ among transformers
// versions).
bool unties(const WeightFolder& folder) {
  const TensorEntry* head = folder.find(kHead);
  const TensorEntry* table = folder.find(kEmbedding);
  if (head == nullptr || table == nullptr) return false;
  return head->dtype != table->dtype || head->shape != table->shape ||
         std::memcmp(head->data.data(), table->data.data(), head->data.size()) != 0;
}

std::vector<std::string> unused_tensors(const ModelConfig& config, const WeightFolder& folder) {
  Llama model(config, DType::f32, Device::meta);
  std::set<std::string> used;
  for (const nn::Parameter& p : model.parameters()) {
    entry_of(p.name, p.value->shape(), folder);
    used.insert(p.name);
  }
  if (config.tied) used.insert(kHead);
  std::vector<std::string> unused;
  for (const std::string& name : folder.names()) {
    if (!used.contains(name) && !name.ends_with("rotary_emb.inv_freq")) unused.push_back(name);
  }
  return unused;
}

const char* torch_name(DType dtype) {
  switch (dtype) {
    case DType::bf16:
      return "bfloat16";
    case DType::f16:
      return "float16";
    case DType::f64:
      return "float64";
    default:
      return "float32";
  }
}

std::string config_text(const ModelConfig& config, DType dtype) {
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
  return json.dump(2) + "\n";
}

}  // namespace

ModelWeights::ModelWeights(const std::string& folder)
    : config_(ModelConfig::load(folder)),
      folder_(std::make_shared<const WeightFolder>(WeightFolder::open(folder))) {
  if (config_.tied && unties(*folder_)) {
    config_.tied = false;
    notes_.push_back(
        fmt::format("{}: tie_word_embeddings is true, but lm_head.weight differs from the embedding: "
                    "the file's is used",
                    folder));
  }
  const auto unused = unused_tensors(config_, *folder_);
  if (!unused.empty()) {
    notes_.push_back(
        fmt::format("{}: {} tensors are not used, the first is {}", folder, unused.size(), unused.front()));
  }
}

Tensor ModelWeights::read(const std::string& name, const Shape& shape) const {
  const TensorEntry& entry = entry_of(name, shape, *folder_);
  return as_tensor(entry, entry.type().value(), folder_);
}

void ModelWeights::prefetch() const { folder_->prefetch(); }

LoadedModel load_model(const std::string& folder, DType dtype, LoadMode mode, Device device) {
  const ModelWeights weights(folder);
  weights.prefetch();
  // On the CPU parameters come to life one by one; on a GPU they are copied into the model's own memory.
  LoadedModel loaded{
      std::make_unique<Llama>(weights.config(), dtype, device == Device::cpu ? Device::meta : device),
      weights.notes()};
  for (const nn::Parameter& p : loaded.model->parameters())
    load_parameter(p, weights.read(p.name, p.value->shape()), mode);
  loaded.model->adopt(device);
  return loaded;
}

void save_parameters(const ModelConfig& config, const std::vector<std::pair<std::string, Shape>>& shapes,
                     const std::function<Tensor(const std::string&)>& value_of, const std::string& folder,
                     DType dtype, const std::string& source) {
  if (folder.empty()) {
    for (const auto& [name, shape] : shapes) value_of(name);
    return;
  }
  AtomicFolder target(folder);
  std::vector<TensorEntry> declared;
  for (const auto& [name, shape] : shapes) declared.push_back(make_tensor_entry(name, dtype, extents(shape)));
  WeightFolderWriter writer(target.path(), declared);
  for (const auto& [name, shape] : shapes) {
    const Tensor t = value_of(name).detached().as_contiguous().to(dtype).on(Device::cpu);
    writer.write(name, {static_cast<const std::byte*>(t.data()), static_cast<std::size_t>(t.bytes())});
  }
  writer.finish();
  write_file_atomically(target.path() + "/config.json", config_text(config, dtype));
  for (const char* name : kCompanions) {
    const std::filesystem::path from = std::filesystem::path(source) / name;
    if (!source.empty() && std::filesystem::exists(from)) {
      std::filesystem::copy_file(from, std::filesystem::path(target.path()) / name);
    }
  }
  target.commit();
}

void save_model(Llama& model, const std::string& folder, DType dtype, const std::string& source) {
  std::vector<std::pair<std::string, Shape>> shapes;
  std::map<std::string, const Tensor*> values;
  for (const nn::Parameter& p : model.parameters()) {
    shapes.emplace_back(p.name, p.value->shape());
    values[p.name] = p.value;
  }
  save_parameters(
      model.config(), shapes, [&](const std::string& name) { return *values.at(name); }, folder, dtype,
      source);
}

}  // namespace ridge::models
