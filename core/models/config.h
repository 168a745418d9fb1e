// What a Hugging Face config.json says about a Llama, Qwen2 or Mistral.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/base/dtype.h"
#include "core/nn/rotary.h"

namespace ridge::models {

/// Absent keys take the defaults of the model's family, as transformers does.
struct ModelConfig {
  std::string model_type;  // llama, qwen2, mistral
  std::int64_t vocab_size = 0;
  std::int64_t hidden_size = 0;
  std::int64_t intermediate_size = 0;
  std::int64_t layers = 0;
  std::int64_t heads = 0;
  std::int64_t kv_heads = 0;
  std::int64_t head_dim = 0;
  std::int64_t max_position = 0;
  double rms_norm_eps = 0;
  double initializer_range = 0.02;
  std::string activation;  // silu, gelu, gelu_tanh
  bool tied = false;       // the output layer is the embedding
  bool qkv_bias = false;
  bool output_bias = false;  // of o_proj
  bool mlp_bias = false;
  std::int64_t sliding_window = 0;  // tokens; 0: off
  std::int64_t sliding_from = 0;    // layers from this index on slide
  nn::RopeConfig rope;
  DType dtype = DType::f32;  // of the stored weights
  std::int64_t bos_id = -1;  // -1: none
  std::vector<std::int64_t> eos_ids;
  std::string json;  // the text it was read from

  /// Keys that a query sees in a layer; 0: all.
  std::int64_t window(std::int64_t layer) const { return layer >= sliding_from ? sliding_window : 0; }
  /// From the text of a config.json; `source` stands in messages. A UserError names the field and its value.
  static ModelConfig parse(std::string_view json, const std::string& source);
  /// From FOLDER/config.json, with the end-of-sequence ids of generation_config.json where there is one.
  static ModelConfig load(const std::string& folder);

  /// Parameters in all; without the input embedding where that is a table of its own.
  std::int64_t parameters() const;
  std::int64_t parameters_without_embedding() const;
  /// FLOPs of a training token: 6 N + 6 L d T, causal attention counted once.
  double train_flops_per_token(std::int64_t sequence_length) const;
  /// Bytes of keys and values a token, in `dtype`.
  std::int64_t kv_bytes_per_token(DType dtype) const;
};

}  // namespace ridge::models
