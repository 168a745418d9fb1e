#include "core/models/quantized_weights.h"

#include "core/models/bitsandbytes_keys.h"
#include "core/models/compressed_tensors_keys.h"

namespace ridge::models {
namespace {

using kernels::WeightFormat;
using Method = QuantizationConfig::Method;

// Families whose tensors would otherwise be called missing.
void refuse_others(const WeightFolder& folder, const std::string& path) {
  require(folder.find(path + ".qweight") == nullptr,
          "{}: {}.qweight is a weight of GPTQ or AWQ, which are not read yet: use bitsandbytes or "
          "compressed-tensors",
          folder.path(), path);
  require(folder.find(path + ".W_q") == nullptr,
          "{}: {}.W_q is a weight of HQQ, which is not read yet: use bitsandbytes or compressed-tensors",
          folder.path(), path);
  if (const TensorEntry* weight = folder.find(path + ".weight")) {
    const auto dtype = weight->type();
    require(dtype && is_floating(*dtype),
            "{}: tensor {} is stored as {}, but none of the tensors that say how to read it is there "
            "(quant_state, SCB or weight_scale): F32, BF16 or F16 are read without",
            folder.path(), weight->name, weight->dtype);
  }
}

void check_method(const QuantizationConfig& config, const WeightFormat& format, bool bitsandbytes,
                  const WeightFolder& folder, const std::string& path) {
  const bool by_them = config.method == Method::bitsandbytes;
  require(config.method == Method::none || by_them == bitsandbytes,
          "{}: {} has the tensors of {}, but config.json says quant_method {}", folder.path(), path,
          bitsandbytes ? "bitsandbytes" : "compressed-tensors", name_of(config.method));
  if (!by_them) return;
  require(format.flat() ? config.four_bit : config.eight_bit,
          "{}: {} is in {}, but config.json says load_in_4bit {} and load_in_8bit {}", folder.path(), path,
          name_of(format), config.four_bit, config.eight_bit);
  const char* type = format.codes == kernels::Codes::nf4 ? "nf4" : "fp4";
  require(!format.flat() || config.four_bit_type == type,
          "{}: the tensors of {} say {}, but config.json says bnb_4bit_quant_type {}", folder.path(), path,
          type, config.four_bit_type);
  require(
      !format.flat() || config.double_quant.value_or(format.double_quant) == format.double_quant,
      "{}: the tensors of {} are in {}, but config.json says bnb_4bit_use_double_quant {}: one of them is "
      "of another model",
      folder.path(), path, name_of(format), config.double_quant.value_or(false));
}

}  // namespace

QuantizedWeights::QuantizedWeights(SharedFolder folder, const QuantizationConfig& config,
                                   const std::vector<LinearShape>& linears)
    : folder_(std::move(folder)) {
  for (const LinearShape& linear : linears) add(linear, config);
  if (config.method != Method::none && layers_.empty()) {
    notes_.push_back(
        fmt::format("{}: config.json says quant_method {}, but the weights are plain ones and are "
                    "taken as they are",
                    folder_->path(), name_of(config.method)));
  }
  if (config.quantizes_activations && !layers_.empty()) {
    notes_.push_back(fmt::format("{}: config.json asks for quantized activations: here weights alone are",
                                 folder_->path()));
  }
}

void QuantizedWeights::add(const LinearShape& linear, const QuantizationConfig& config) {
  std::optional<WeightFormat> format = bitsandbytes_format(*folder_, linear);
  const bool bitsandbytes = format.has_value();
  if (!format) format = compressed_format(*folder_, linear, config);
  if (!format) {
    refuse_others(*folder_, linear.path);
    return;
  }
  check_method(config, *format, bitsandbytes, *folder_, linear.path);
  layers_[linear.path] = {linear, *format, bitsandbytes};
  for (std::string& key : bitsandbytes ? bitsandbytes_keys(linear.path) : compressed_keys(linear.path)) {
    const TensorEntry* entry = folder_->find(key);
    if (entry == nullptr) continue;
    bytes_ += static_cast<std::int64_t>(entry->data.size());
    keys_.insert(std::move(key));
  }
}

std::optional<WeightFormat> QuantizedWeights::format_of(const std::string& path) const {
  const auto layer = layers_.find(path);
  return layer == layers_.end() ? std::nullopt : std::optional(layer->second.format);
}

const QuantizedWeights::Layer& QuantizedWeights::layer_of(const std::string& path) const {
  const auto layer = layers_.find(path);
  if (layer == layers_.end()) fail("{} is not quantized in '{}'", path, folder_->path());
  return layer->second;
}

QuantizedWeight QuantizedWeights::on_meta(const std::string& path) const {
  const auto& [shape, format, bitsandbytes] = layer_of(path);
  const DType scales = bitsandbytes ? DType::f32 : compressed_scale_dtype(*folder_, shape, format);
  return QuantizedWeight::empty(format, shape.rows, shape.cols, scales, Device::meta);
}

QuantizedWeight QuantizedWeights::read(const std::string& path) const {
  const auto& [shape, format, bitsandbytes] = layer_of(path);
  return bitsandbytes ? read_bitsandbytes(folder_, shape, format) : read_compressed(folder_, shape, format);
}

std::vector<WrittenTensor> quantized_tensors(const QuantizedWeight& weight, const std::string& path,
                                             DType dtype) {
  return written_by_bitsandbytes(weight.format) ? bitsandbytes_tensors(weight, path, dtype)
                                                : compressed_tensors(weight, path);
}

}  // namespace ridge::models
