// Models to and from Hugging Face folders.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/models/llama.h"

namespace ridge {
class WeightFolder;
}

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
  /// The stored values of a whole parameter, on the CPU; they may be the mapped file itself.
  Tensor read(const std::string& name, const Shape& shape) const;
  /// Asks the system to read ahead.
  void prefetch() const;

 private:
  ModelConfig config_;
  std::shared_ptr<const WeightFolder> folder_;
  std::vector<std::string> notes_;
};

/// Reads FOLDER/config.json and its weights, converted to `dtype` (f32 or bf16). UserErrors name file, tensor
/// and both shapes where they disagree with the config.
LoadedModel load_model(const std::string& folder, DType dtype, LoadMode mode, Device device = Device::cpu);

/// As save_model, of parameters that `value_of` gives one at a time, in order. With an empty folder it only
/// asks for them: where ranks put parameters together, one writes and the others help.
void save_parameters(const ModelConfig& config, const std::vector<std::pair<std::string, Shape>>& shapes,
                     const std::function<Tensor(const std::string&)>& value_of, const std::string& folder,
                     DType dtype, const std::string& source);

/// Writes config.json, weights in `dtype`, and copies of the tokenizer and generation files of `source` where
/// it has some. The folder appears whole or not at all. `source` may be empty.
void save_model(Llama& model, const std::string& folder, DType dtype, const std::string& source);

}  // namespace ridge::models
