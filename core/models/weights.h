// Models to and from Hugging Face folders.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/models/llama.h"
#include "core/models/quantized_weights.h"

namespace ridge::models {

enum class LoadMode {
  read,  // on the CPU weights may alias the mapped file where dtype and alignment allow
  train  // weights are copies that may be written
};

struct LoadedModel {
  std::unique_ptr<Llama> model;
  std::vector<std::string> notes;  // what a user should know: unused tensors, an untied output layer
};

/// A folder's weights, one parameter at a time.
class ModelWeights {
 public:
  /// Reads config.json and opens the files. UserErrors name file, tensor and both shapes where they disagree.
  explicit ModelWeights(const std::string& folder);
  const ModelConfig& config() const { return config_; }
  const std::vector<std::string>& notes() const { return notes_; }
  /// The stored values of a whole parameter, on the CPU; they may be the mapped file itself. Those of a
  /// quantized weight are dequantized to f32.
  Tensor read(const std::string& name, const Shape& shape) const;
  /// How the weight of a linear layer is quantized, by the layer's path; none where it is dense.
  std::optional<kernels::WeightFormat> format_of(const std::string& linear_path) const {
    return quantized_->format_of(linear_path);
  }
  /// A quantized weight [rows, cols] as it is, on the CPU; codes may alias the mapped file. UserErrors name
  /// values that cannot be scales.
  QuantizedWeight read_quantized(const std::string& linear_path, std::int64_t rows, std::int64_t cols) const;
  /// The same without values, on meta.
  QuantizedWeight quantized_on_meta(const std::string& linear_path) const {
    return quantized_->on_meta(linear_path);
  }
  bool is_quantized() const { return !quantized_->empty(); }
  /// Bytes of all that the model's parameters have in the folder.
  std::int64_t stored_bytes() const { return stored_bytes_; }
  /// Asks the system to read ahead.
  void prefetch() const;

 private:
  ModelConfig config_;
  SharedFolder folder_;
  std::shared_ptr<const QuantizedWeights> quantized_;
  std::int64_t stored_bytes_ = 0;
  std::vector<std::string> notes_;
};

/// A UserError where a layer that is to be quantized is so already in another format: codes are not made of
/// codes.
void require_stored_as(const kernels::WeightFormat& asked, const kernels::WeightFormat& stored,
                       const std::string& path);

/// What load_model() does with the linear layers of the blocks, and with the output layer.
struct QuantizeOnLoad {
  std::optional<kernels::WeightFormat> format =
      {};                   // of those that are dense in the folder, others being so; none: as they are
  bool head = false;        // the output layer too, where it is not the embedding
  bool dequantize = false;  // those that are quantized in the folder become dense
};

/// Reads FOLDER/config.json and its weights, converted to `dtype` (f32 or bf16); layers that are quantized
/// stay so. UserErrors name file, tensor and both shapes where they disagree with the config, a layer that
/// the format does not divide, and one that has another format.
LoadedModel load_model(const std::string& folder, DType dtype, LoadMode mode, Device device = Device::cpu,
                       const QuantizeOnLoad& quantize = {});

/// As save_model, of parameters that `value_of` gives one at a time, in order. With an empty folder it only
/// asks for them: where ranks put parameters together, one writes and the others help.
void save_parameters(const ModelConfig& config, const std::vector<std::pair<std::string, Shape>>& shapes,
                     const std::function<Tensor(const std::string&)>& value_of, const std::string& folder,
                     DType dtype, const std::string& source);

/// Writes config.json, weights in `dtype`, and copies of the tokenizer and generation files of `source` where
/// it has some. The folder appears whole or not at all. `source` may be empty.
void save_model(Llama& model, const std::string& folder, DType dtype, const std::string& source);

}  // namespace ridge::models
