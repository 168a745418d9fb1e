#include "lora/adapter.h"

#include <algorithm>
#include <filesystem>
#include <set>

#include "core/base/error.h"
#include "core/io/file.h"
#include "core/io/quote.h"
#include "core/io/safetensors.h"
#include "lora/lora_linear.h"

namespace ridge::lora {
namespace {

constexpr const char* kPrefix = "base_model.model.";
constexpr std::size_t kMaxConfigBytes = std::size_t{16} << 20;

// The place of a layer's adapter: inside of what makes a rank's piece whole.
std::unique_ptr<nn::Linear>& place_in(const nn::LinearSlot& slot) {
  std::unique_ptr<nn::Linear>* inner = (*slot.slot)->inner();
  return inner != nullptr ? *inner : *slot.slot;
}

LoraLinear* adapter_in(const nn::LinearSlot& slot) { return dynamic_cast<LoraLinear*>(place_in(slot).get()); }

std::string target_text(const LoraConfig& config) {
  if (!config.target_pattern.empty()) return config.target_pattern;
  std::string text;
  for (const std::string& target : config.targets) text += (text.empty() ? "" : ", ") + target;
  return text;
}

void wrap(const nn::LinearSlot& slot, const LoraConfig& config, Device device) {
  require(adapter_in(slot) == nullptr, "layer {} has an adapter already: merge it first", slot.path);
  std::unique_ptr<nn::Linear>& place = place_in(slot);
  place = std::make_unique<LoraLinear>(std::move(place), config.rank_of(slot.path),
                                       config.scaling_of(slot.path), config.dropout, device);
}

// `source` stands in the message: whose targets they are.
std::int64_t wrap_targets(const std::vector<nn::LinearSlot>& linears, const LoraConfig& config,
                          const std::string& source, Device device) {
  std::int64_t count = 0;
  for (const nn::LinearSlot& slot : linears) {
    if (!config.targets_layer(slot.path)) continue;
    wrap(slot, config, device);
    ++count;
  }
  require(count > 0, "{} [{}] match none of the model's {} linear layers, such as {}", source,
          target_text(config), linears.size(), linears.empty() ? "none" : linears.front().path);
  return count;
}

void load_tensor(const Tensor& into, const SafetensorsFile& file, const std::string& name,
                 std::set<std::string>& seen) {
  const TensorEntry* entry = file.find(name);
  require(entry != nullptr, "{}: tensor {} is missing: adapter_config.json targets that layer", file.path(),
          name);
  const Shape shape{std::span<const std::int64_t>(entry->shape.data(),
                                                  std::min<std::size_t>(entry->shape.size(), kMaxDims))};
  require(shape == into.shape(), "{}: tensor {} has shape {}, but the config and the base model say {}",
          file.path(), name, to_string(shape), to_string(into.shape()));
  const auto dtype = entry->type();
  require(dtype && is_floating(*dtype), "{}: tensor {} is stored as {}: F32, BF16 or F16 are read",
          file.path(), name, entry->dtype);
  const Tensor stored = Tensor::empty(shape, *dtype);
  std::memcpy(stored.data(), entry->data.data(), entry->data.size());
  into.copy_from(stored);
  seen.insert(name);
}

}  // namespace

bool is_adapter_parameter(std::string_view name) {
  return name.ends_with(".lora_A.weight") || name.ends_with(".lora_B.weight");
}

std::int64_t add_adapters(const std::vector<nn::LinearSlot>& linears, const LoraConfig& config,
                          std::uint64_t seed, Device device) {
  const std::int64_t count = wrap_targets(linears, config, "the adapter's targets", device);
  std::uint64_t index = 0;
  for (const nn::LinearSlot& slot : linears) {
    if (LoraLinear* adapter = adapter_in(slot)) adapter->initialize(seed, index++);
  }
  return count;
}

LoraConfig read_adapter_config(const std::string& folder, std::vector<std::string>& notes) {
  const std::string path = folder + "/adapter_config.json";
  return LoraConfig::parse(read_text_file(path, kMaxConfigBytes), path, notes);
}

void note_base(const std::string& folder, const std::string& model, std::vector<std::string>& notes) {
  std::vector<std::string> heard;  // by whoever loads it
  const std::string named = read_adapter_config(folder, heard).base_model;
  std::error_code error;
  const auto last_part = [](const std::filesystem::path& path) {
    return (path.has_filename() ? path : path.parent_path()).filename();
  };
  const std::filesystem::path whole = std::filesystem::weakly_canonical(model, error);
  std::string cached = "models--" + named;  // the hub's cache has ORG/NAME as models--ORG--NAME
  if (const std::size_t slash = cached.find('/'); slash != std::string::npos) cached.replace(slash, 1, "--");
  const bool same = last_part(named) == last_part(model) || last_part(named) == last_part(whole) ||
                    std::find(whole.begin(), whole.end(), cached) != whole.end();
  if (named.empty() || same) return;
  notes.push_back(
      fmt::format("{}/adapter_config.json: made for {} (base_model_name_or_path), and the model is {}",
                  folder, shown(named), model));
}

LoraConfig load_adapter(const std::vector<nn::LinearSlot>& linears, const std::string& folder,
                        std::vector<std::string>& notes, Device device) {
  const LoraConfig config = read_adapter_config(folder, notes);
  const SafetensorsFile file = SafetensorsFile::open(folder + "/adapter_model.safetensors");
  wrap_targets(linears, config, folder + "/adapter_config.json: target_modules", device);
  std::set<std::string> seen;
  for (const nn::LinearSlot& slot : linears) {
    LoraLinear* adapter = adapter_in(slot);
    if (adapter == nullptr) continue;
    load_tensor(adapter->a(), file, kPrefix + slot.path + ".lora_A.weight", seen);
    load_tensor(adapter->b(), file, kPrefix + slot.path + ".lora_B.weight", seen);
  }
  for (const TensorEntry& entry : file.entries()) {
    require(seen.contains(entry.name),
            "{}: tensor {} belongs to no layer that adapter_config.json targets in this model", file.path(),
            entry.name);
  }
  return config;
}

void save_adapter(const std::vector<nn::LinearSlot>& linears, const LoraConfig& config,
                  const std::string& folder) {
  std::vector<TensorEntry> entries;
  std::vector<Tensor> keep;
  const auto add = [&](const std::string& name, const Tensor& tensor) {
    keep.push_back(tensor.detached().as_contiguous().on(Device::cpu));
    const Tensor& t = keep.back();
    entries.push_back(
        make_tensor_entry(kPrefix + name, t.dtype(), {t.shape().begin(), t.shape().end()},
                          {static_cast<const std::byte*>(t.data()), static_cast<std::size_t>(t.bytes())}));
  };
  for (const nn::LinearSlot& slot : linears) {
    LoraLinear* adapter = adapter_in(slot);
    if (adapter == nullptr) continue;
    add(slot.path + ".lora_A.weight", adapter->a());
    add(slot.path + ".lora_B.weight", adapter->b());
  }
  AtomicFolder target(folder);
  write_safetensors(target.path() + "/adapter_model.safetensors", entries);
  write_file_atomically(target.path() + "/adapter_config.json", config.to_json());
  target.commit();
}

std::int64_t merge_adapters(const std::vector<nn::LinearSlot>& linears) {
  std::int64_t count = 0;
  for (const nn::LinearSlot& slot : linears) {
    LoraLinear* adapter = adapter_in(slot);
    if (adapter == nullptr) continue;
    place_in(slot) = adapter->merge();
    ++count;
  }
  return count;
}

}  // namespace ridge::lora
