// The options of commands that run a model.
#pragma once

#include <string>
#include <vector>

#include "core/models/weights.h"

namespace ridge {
class Command;
class Context;

struct ModelOptions {
  std::string model;     // Hugging Face folder
  std::string adapter;   // PEFT folder, or empty
  std::string dtype;     // f32, bf16, or auto: bf16 where the weights are stored so
  std::string quantize;  // a weight format for the layers that are dense in the folder, or empty
  bool quantize_head = false;
};

/// Adds --model, --adapter, --dtype, --quantize and --quantize-head.
void add_model_options(const Command& command, ModelOptions& options, const std::string& default_dtype);

/// The model for reading, with its adapter, on one line of notes each.
std::unique_ptr<models::Llama> load(const ModelOptions& options, const Context& context);

/// A UserError where an id lies outside the model's embedding; `what` says where the ids come from.
void check_ids(const std::vector<std::int32_t>& ids, const models::ModelConfig& config,
               const std::string& what);

}  // namespace ridge
