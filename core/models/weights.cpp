#include "core/models/weights.h"

#include <cstring>
#include <filesystem>
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
const TensorEntry& entry_of(const nn::Parameter& p, const WeightFolder& folder) {
  const TensorEntry* entry = folder.find(p.name);
  require(entry != nullptr, "{}: tensor {} is missing: the config asks for it with shape {}", folder.path(),
          p.name, to_string(p.value->shape()));
  require(entry->shape == extents(p.value->shape()), "{}: tensor {} has shape {}, but config.json says {}",
          folder.path(), p.name, shape_text(entry->shape), to_string(p.value->shape()));
  const auto dtype = entry->type();
  require(dtype && is_floating(*dtype), "{}: tensor {} is stored as {}: F32, BF16 or F16 are read",
          folder.path(), p.name, entry->dtype);
  return *entry;
}

void load_parameter(const nn::Parameter& p, const std::shared_ptr<const WeightFolder>& folder,
                    LoadMode mode) {
  const TensorEntry& entry = entry_of(p, *folder);
  const DType dtype = entry.type().value();
  const Tensor stored = as_tensor(entry, dtype, folder);
  if (p.value->device() == Device::cuda) {
    p.value->copy_from(stored);
  } else if (mode == LoadMode::read && dtype == p.value->dtype()) {
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

std::vector<std::string> unused_tensors(Llama& model, const WeightFolder& folder) {
  std::set<std::string> used;
  for (const nn::Parameter& p : model.parameters()) used.insert(p.name);
  if (model.config().tied) used.insert(kHead);
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

std::string config_text(const Llama& model, DType dtype) {
  nlohmann::ordered_json json = nlohmann::ordered_json::parse(model.config().json);
  json.erase(json.contains("dtype") ? "torch_dtype" : "dtype");
  json[json.contains("dtype") ? "dtype" : "torch_dtype"] = torch_name(dtype);
  json["tie_word_embeddings"] = model.config().tied;
  json["model_type"] = model.config().model_type;
  if (!json.contains("architectures")) {
    const std::string& type = model.config().model_type;
    json["architectures"] = {type == "llama"   ? "LlamaForCausalLM"
                             : type == "qwen2" ? "Qwen2ForCausalLM"
                                               : "MistralForCausalLM"};
  }
  return json.dump(2) + "\n";
}

}  // namespace

LoadedModel load_model(const std::string& folder, DType dtype, LoadMode mode, Device device) {
  ModelConfig config = ModelConfig::load(folder);
  const auto weights = std::make_shared<const WeightFolder>(WeightFolder::open(folder));
  LoadedModel loaded;
  if (config.tied && unties(*weights)) {
    config.tied = false;
    loaded.notes.push_back(
        fmt::format("{}: tie_word_embeddings is true, but lm_head.weight differs from the embedding: "
                    "the file's is used",
                    folder));
  }
  loaded.model = std::make_unique<Llama>(config, dtype, Device::meta);
  for (const nn::Parameter& p : loaded.model->parameters()) entry_of(p, *weights);
  weights->prefetch();
  // On the CPU parameters come to life one by one; on a GPU they are copied into the model's own memory.
  if (device != Device::cpu) loaded.model = std::make_unique<Llama>(std::move(config), dtype, device);
  for (const nn::Parameter& p : loaded.model->parameters()) load_parameter(p, weights, mode);
  loaded.model->adopt(device);
  const auto unused = unused_tensors(*loaded.model, *weights);
  if (!unused.empty()) {
    loaded.notes.push_back(
        fmt::format("{}: {} tensors are not used, the first is {}", folder, unused.size(), unused.front()));
  }
  return loaded;
}

void save_model(Llama& model, const std::string& folder, DType dtype, const std::string& source) {
  AtomicFolder target(folder);
  std::vector<TensorEntry> declared;
  const nn::Parameters parameters = model.parameters();
  for (const nn::Parameter& p : parameters)
    declared.push_back(make_tensor_entry(p.name, dtype, extents(p.value->shape())));
  WeightFolderWriter writer(target.path(), declared);
  for (const nn::Parameter& p : parameters) {
    const Tensor t = p.value->detached().as_contiguous().to(dtype).on(Device::cpu);
    writer.write(p.name, {static_cast<const std::byte*>(t.data()), static_cast<std::size_t>(t.bytes())});
  }
  writer.finish();
  write_file_atomically(target.path() + "/config.json", config_text(model, dtype));
  for (const char* name : kCompanions) {
    const std::filesystem::path from = std::filesystem::path(source) / name;
    if (!source.empty() && std::filesystem::exists(from)) {
      std::filesystem::copy_file(from, std::filesystem::path(target.path()) / name);
    }
  }
  target.commit();
}

}  // namespace ridge::models
