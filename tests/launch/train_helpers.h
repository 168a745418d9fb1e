// What the tests of `ridge train` share: configs, metrics, files that the program wrote.
#pragma once

#include <cmath>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "core/io/safetensors.h"
#include "core/models/weights.h"
#include "tests/launch/run_program.h"

namespace ridge::test {

/// A run config of defaults that tests state; everything else comes as a.b=value.
inline std::string write_config(const TemporaryFolder& folder, const std::string& model,
                                const std::string& text) {
  const std::string path = folder / "run.yaml";
  write_text(path, "model: {path: " + model + "}\ndata: {train: [" + text +
                       "], sequence_length: 32, order: sequential}\noptim: {lr: 1.0e-3}\n"
                       "train: {steps: 4, global_batch: 4, precision: f32}\noutput: " +
                       (folder / "out") + "\n");
  return path;
}

/// The values of an f32 tensor of a safetensors file.
inline std::vector<float> floats_of(const TensorEntry& entry) {
  std::vector<float> values(entry.data.size() / sizeof(float));
  std::memcpy(values.data(), entry.data.data(), entry.data.size());
  return values;
}

inline double norm_of(const TensorEntry& entry) {
  double sum = 0;
  for (const float x : floats_of(entry)) sum += static_cast<double>(x) * static_cast<double>(x);
  return std::sqrt(sum);
}

/// A config.json, which is YAML too.
constexpr const char* kTinyArch =
    R"({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32,
        "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "vocab_size": 300, "max_position_embeddings": 64, "rms_norm_eps": 1.0e-5,
        "tie_word_embeddings": false, "bos_token_id": 0, "eos_token_id": 0})";

/// A text, a tokenizer that the program trains on it, and a run config for a small Llama with random weights:
/// for tests that need no files from outside.
struct TinyModel {
  explicit TinyModel(const TemporaryFolder& folder)
      : text(folder / "tales.txt"),
        tokenizer(folder / "tokenizer"),
        model(folder / "base"),
        config(folder / "tiny.yaml") {
    must_run({"sample-text", "--kind", "tales", "--bytes", "40000", "--seed", "3", "--out", text});
    must_run({"train-tokenizer", "--text", text, "--vocab-size", "300", "--out", tokenizer});
    write_text(config, "model:\n  tokenizer: " + tokenizer + "\n  arch: " + kTinyArch + "\ndata: {train: [" +
                           text +
                           "], sequence_length: 32, seed: 5}\noptim: {lr: 3.0e-3}\n"
                           "train: {steps: 12, global_batch: 4, precision: f32, seed: 7}\noutput: " +
                           (folder / "out") + "\n");
  }
  /// Writes the folder `model`, which only some tests start from.
  void save() const {
    models::Llama llama(models::ModelConfig::parse(kTinyArch, "tiny"), DType::f32, Device::cpu);
    llama.initialize(1);
    models::save_model(llama, model, DType::f32, tokenizer);
  }
  std::string text, tokenizer, model, config;
};

}  // namespace ridge::test
