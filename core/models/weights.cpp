#include "core/models/weights.h"

#include <cstring>
#include <map>
#include <set>

#include "core/io/file.h"
#include "core/models/saved_folder.h"
#include "core/nn/quantized_linear.h"
#include "kernels/quantize.h"

namespace ridge::models {
namespace {

constexpr const char* kEmbedding = "model.embed_tokens.weight";
constexpr const char* kHead = "lm_head.weight";
constexpr std::string_view kWeight = ".weight";

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

// `device`: where a parameter that has no memory yet comes to life.
void load_parameter(const nn::Parameter& p, const Tensor& stored, LoadMode mode, Device device) {
  const PurposeScope purpose(Purpose::weights);
  if (p.value->device() == Device::cuda) {
    p.value->copy_from(stored);
  } else if (device != Device::cuda && mode == LoadMode::read && stored.dtype() == p.value->dtype()) {
    *p.value = stored;
  } else {
    *p.value = Tensor::empty(p.value->shape(), p.value->dtype(), device);
    p.value->copy_from(stored);
  }
}

// A tied config whose file holds another output layer: the file is right (formats differ among transformers
// versions).
bool unties(const WeightFolder& folder) {
  const TensorEntry* head = folder.find(kHead);
  const TensorEntry* table = folder.find(kEmbedding);
  if (folder.find("lm_head.weight_packed") != nullptr) return true;
  if (head == nullptr || table == nullptr) return false;
  return head->dtype != table->dtype || head->shape != table->shape ||
         std::memcmp(head->data.data(), table->data.data(), head->data.size()) != 0;
}

std::vector<LinearShape> linear_shapes(Llama& model) {
  std::vector<LinearShape> shapes;
  for (const nn::LinearSlot& slot : model.linears())
    shapes.push_back({slot.path, (*slot.slot)->out_features(), (*slot.slot)->in_features()});
  return shapes;
}

// "a.b" of "a.b.weight", else nothing that a layer is called.
std::string linear_of(const std::string& parameter) {
  return parameter.ends_with(kWeight) ? parameter.substr(0, parameter.size() - kWeight.size()) : "";
}

// Without its scale such a weight would be wrong by that much.
void require_no_scale(const TensorEntry& weight, const WeightFolder& folder) {
  for (const char* suffix : {"_scale", "_scale_inv"}) {
    require(folder.find(weight.name + suffix) == nullptr,
            "{}: tensor {} is stored as {}, but {}{} is there, and scales go with codes (I8 or F8_E4M3): "
            "quantize the model again, or leave out the scale if the weight is whole without it",
            folder.path(), weight.name, weight.dtype, weight.name, suffix);
  }
}

// The folder's tensors that the model takes as they are; each is there, in the shape that the config asks
// for.
std::vector<const TensorEntry*> dense_entries(Llama& model, const WeightFolder& folder,
                                              const QuantizedWeights& quantized) {
  std::vector<const TensorEntry*> entries;
  for (const nn::Parameter& p : model.parameters()) {
    if (quantized.format_of(linear_of(p.name))) continue;
    entries.push_back(&entry_of(p.name, p.value->shape(), folder));
    require_no_scale(*entries.back(), folder);
  }
  return entries;
}

std::vector<std::string> unused_tensors(const ModelConfig& config, const WeightFolder& folder,
                                        std::set<std::string> used) {
  if (config.tied) used.insert(kHead);
  std::vector<std::string> unused;
  for (const std::string& name : folder.names()) {
    if (!used.contains(name) && !name.ends_with("rotary_emb.inv_freq")) unused.push_back(name);
  }
  return unused;
}

// The format in which each layer is held, by its path.
using Formats = std::map<std::string, kernels::WeightFormat>;

Formats formats_to_hold(Llama& model, const ModelWeights& weights, const QuantizeOnLoad& how,
                        std::vector<std::string>& notes) {
  Formats formats;
  for (const LinearShape& linear : linear_shapes(model)) {
    if (const auto stored = weights.format_of(linear.path)) {
      if (how.format) require_stored_as(*how.format, *stored, linear.path);
      if (!how.dequantize) formats[linear.path] = *stored;
    } else if (how.format && (how.head || linear.path != "lm_head")) {
      kernels::check_divides(*how.format, linear.rows, linear.cols, linear.path);
      formats[linear.path] = *how.format;
    }
  }
  if (how.head && weights.config().tied) notes.push_back("the output layer is the embedding: it stays dense");
  return formats;
}

QuantizedWeight hold_quantized(const LinearShape& linear, const kernels::WeightFormat& format,
                               const ModelWeights& weights, LoadMode mode, Device device) {
  const PurposeScope purpose(Purpose::weights);
  if (!weights.format_of(linear.path)) {
    QuantizedWeight w =
        quantize(weights.read(linear.path + ".weight", {linear.rows, linear.cols}).on(device), format);
    require(device != Device::cpu || kernels::first_bad_scale(w.view()) < 0,
            "{}: its weights are not all finite, and cannot be quantized", linear.path);
    return w;
  }
  QuantizedWeight w = weights.read_quantized(linear.path, linear.rows, linear.cols);
  if (device != Device::cpu) return w.on(device);
  for (const QuantizedWeight::Part& part : w.parts()) {
    if (mode == LoadMode::train) *part.value = part.value->contiguous_copy();
  }
  return w;
}

void put_quantized(Llama& model, const Formats& formats, const ModelWeights& weights, LoadMode mode,
                   Device device) {
  for (const nn::LinearSlot& slot : model.linears()) {
    const auto format = formats.find(slot.path);
    if (format == formats.end()) continue;
    const LinearShape linear{slot.path, (*slot.slot)->out_features(), (*slot.slot)->in_features()};
    const Tensor bias = (*slot.slot)->dense()->bias();
    *slot.slot = std::make_unique<nn::QuantizedLinear>(
        hold_quantized(linear, format->second, weights, mode, device), bias);
  }
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
  Llama model(config_, DType::f32, Device::meta);
  const std::string file = folder + "/config.json";
  quantized_ = std::make_shared<const QuantizedWeights>(
      folder_, QuantizationConfig::parse(config_.json, file), linear_shapes(model));
  notes_.insert(notes_.end(), quantized_->notes().begin(), quantized_->notes().end());
  std::set<std::string> used = quantized_->keys();
  stored_bytes_ = quantized_->bytes();
  for (const TensorEntry* entry : dense_entries(model, *folder_, *quantized_)) {
    used.insert(entry->name);
    stored_bytes_ += static_cast<std::int64_t>(entry->data.size());
  }
  const auto unused = unused_tensors(config_, *folder_, std::move(used));
  if (!unused.empty()) {
    notes_.push_back(
        fmt::format("{}: {} tensors are not used, the first is {}", folder, unused.size(), unused.front()));
  }
}

void require_stored_as(const kernels::WeightFormat& asked, const kernels::WeightFormat& stored,
                       const std::string& path) {
  require(
      asked == stored,
      "quantizing to {}: {} is stored as {} already: take the model as it is, or start from dense weights",
      name_of(asked), path, name_of(stored));
}

Tensor ModelWeights::read(const std::string& name, const Shape& shape) const {
  const std::string path = linear_of(name);
  if (quantized_->format_of(path)) return dequantize(read_quantized(path, shape[0], shape[1]), DType::f32);
  const TensorEntry& entry = entry_of(name, shape, *folder_);
  return as_tensor(entry, shape, entry.type().value(), folder_);
}

QuantizedWeight ModelWeights::read_quantized(const std::string& linear_path, std::int64_t rows,
                                             std::int64_t cols) const {
  QuantizedWeight w = quantized_->read(linear_path);
  check(w.shape == Shape{rows, cols}, "the shape that the config asks for");
  return w;
}

void ModelWeights::prefetch() const { folder_->prefetch(); }

LoadedModel load_model(const std::string& folder, DType dtype, LoadMode mode, Device device,
                       const QuantizeOnLoad& how) {
  const ModelWeights weights(folder);
  weights.prefetch();
  const bool holds_codes = how.format || (weights.is_quantized() && !how.dequantize);
  // On the CPU parameters come to life one by one, and on a GPU where some of them never do as such; else
  // they are copied into the model's own memory.
  const Device built = device == Device::cpu || holds_codes ? Device::meta : device;
  LoadedModel loaded{std::make_unique<Llama>(weights.config(), dtype, built), weights.notes()};
  const Formats formats = formats_to_hold(*loaded.model, weights, how, loaded.notes);
  for (const nn::Parameter& p : loaded.model->parameters()) {
    if (!formats.contains(linear_of(p.name)))
      load_parameter(p, weights.read(p.name, p.value->shape()), mode, device);
  }
  put_quantized(*loaded.model, formats, weights, mode, device);
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
  write_file_atomically(target.path() + "/config.json", config_text(config, dtype, ""));
  copy_companions(source, target.path());
  target.commit();
}

void save_model(Llama& model, const std::string& folder, DType dtype, const std::string& source) {
  std::vector<std::pair<std::string, Shape>> shapes;
  std::map<std::string, const Tensor*> values;
  for (const nn::LinearSlot& slot : model.linears())
    check((*slot.slot)->quantized() == nullptr, "a model without quantized layers");
  for (const nn::Parameter& p : model.parameters()) {
    shapes.emplace_back(p.name, p.value->shape());
    values[p.name] = p.value;
  }
  save_parameters(
      model.config(), shapes, [&](const std::string& name) { return *values.at(name); }, folder, dtype,
      source);
}

}  // namespace ridge::models
