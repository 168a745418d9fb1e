// Small models for tests of decoding, and what is done to them.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "core/models/weights.h"
#include "core/nn/quantized_linear.h"
#include "kernels/fill.h"
#include "tests/test_device.h"

namespace ridge::test {

inline std::unique_ptr<models::Llama> load_test_model(const std::string& name, DType dtype = DType::f32) {
  return models::load_model(std::string(RIDGE_SOURCE_DIR) + "/tests/data/models/" + name, dtype,
                            models::LoadMode::read, test_device())
      .model;
}

/// Sizes that tell its dimensions apart; decisive random weights make choices that rounding does not turn.
inline models::ModelConfig tiny_decoder() {
  models::ModelConfig c;
  c.model_type = "llama";
  c.vocab_size = 67;
  c.hidden_size = 32;
  c.intermediate_size = 48;
  c.layers = 2;
  c.heads = 8;
  c.kv_heads = 2;
  c.head_dim = 4;
  c.max_position = 128;
  c.rms_norm_eps = 1e-5;
  c.activation = "silu";
  c.rope.head_dim = c.head_dim;
  c.rope.max_position = c.max_position;
  return c;
}

/// Random values of all parameters whose names hold `part`: norms about 1, others about 0.
inline void randomize(models::Llama& model, const std::string& part, double deviation = 0.2) {
  std::uint64_t index = 0;
  for (const nn::Parameter& p : model.parameters()) {
    ++index;
    if (p.name.find(part) == std::string::npos) continue;
    const double mean = p.name.find("norm") != std::string::npos ? 1 : 0;
    const auto fill = [&]<class T>(std::type_identity<T>) {
      kernels::normal<T>(test_stream(), p.value->view<T>(), mean, deviation, {9, index});
    };
    visit_compute(p.value->dtype(), fill);
  }
}

inline std::unique_ptr<models::Llama> random_model(const models::ModelConfig& config,
                                                   DType dtype = DType::f32) {
  auto model = std::make_unique<models::Llama>(config, dtype, test_device());
  randomize(*model, "");
  return model;
}

inline void quantize_linears(models::Llama& model, const kernels::WeightFormat& format) {
  for (const nn::LinearSlot& slot : model.linears()) {
    const auto* dense = dynamic_cast<const nn::DenseLinear*>(slot.slot->get());
    const Tensor bias = dense->bias();
    *slot.slot = std::make_unique<nn::QuantizedLinear>(quantize(dense->weight(), format), bias);
  }
}

inline std::vector<std::int32_t> prompt_of(const models::Llama& model, std::int64_t length,
                                           std::int64_t which) {
  std::vector<std::int32_t> ids;
  for (std::int64_t i = 0; i < length; ++i)
    ids.push_back(
        static_cast<std::int32_t>((i * i * 5 + i * 7 + which * 13 + 1) % model.config().vocab_size));
  return ids;
}

}  // namespace ridge::test
