// Models to and from Hugging Face folders.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "core/models/llama.h"

namespace ridge::models {

enum class LoadMode {
  read,  // on the CPU weights may alias the mapped file where dtype and alignment allow
  train  // weights are copies that may be written
};

struct LoadedModel {
  std::unique_ptr<Llama> model;
  std::vector<std::string> notes;  // what a user should know: unused tensors, an untied output layer
};

/// Reads FOLDER/config.json and its weights, converted to `dtype` (f32 or bf16). UserErrors name file, tensor
/// and both shapes where they disagree with the config.
LoadedModel load_model(const std::string& folder, DType dtype, LoadMode mode, Device device = Device::cpu);

/// Writes config.json, weights in `dtype`, and copies of the tokenizer and generation files of `source` where
/// it has some. The folder appears whole or not at all. `source` may be empty.
void save_model(Llama& model, const std::string& folder, DType dtype, const std::string& source);

}  // namespace ridge::models
