// Adapters on a model's linear layers, and PEFT folders.
#pragma once

#include <string>
#include <vector>

#include "core/nn/module.h"
#include "lora/lora_config.h"

namespace ridge::lora {

/// Wraps every layer that the config targets, with random A and zero B. Returns their number; a UserError
/// where the targets match nothing.
std::int64_t add_adapters(const std::vector<nn::LinearSlot>& linears, const LoraConfig& config,
                          std::uint64_t seed, Device device);

/// Reads FOLDER/adapter_config.json alone.
LoraConfig read_adapter_config(const std::string& folder, std::vector<std::string>& notes);

/// Reads FOLDER/adapter_config.json and adapter_model.safetensors, and wraps the layers that they name.
/// UserErrors name tensors that are missing, unknown, or whose rank or shape disagrees. `notes` gets what a
/// user should know.
LoraConfig load_adapter(const std::vector<nn::LinearSlot>& linears, const std::string& folder,
                        std::vector<std::string>& notes, Device device = Device::cpu);

/// Writes the adapters in `linears` as a PEFT folder, in f32, whole or not at all.
void save_adapter(const std::vector<nn::LinearSlot>& linears, const LoraConfig& config,
                  const std::string& folder);

/// A note where FOLDER/adapter_config.json names another base than the folder `model`: their last parts
/// differ.
void note_base(const std::string& folder, const std::string& model, std::vector<std::string>& notes);

/// Merges every adapter into its dense base. Returns their number.
std::int64_t merge_adapters(const std::vector<nn::LinearSlot>& linears);

/// Whether a parameter's name is an adapter's.
bool is_adapter_parameter(std::string_view name);

}  // namespace ridge::lora
