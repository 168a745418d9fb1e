// The model that benchmarks and profiles of decoding run, in any weight format.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "inference/engine.h"
#include "launch/command_line.h"

namespace ridge {

struct DecoderOptions {
  std::string model, dtype = "bf16", quantize, kv_cache = "auto";
  bool quantize_head = false, no_graph = false;
  bool random = true;  // else the folder's weights, where it has them
  std::int64_t prefill_chunk = 512;

  /// Adds --model, --dtype, --quantize, --quantize-head, --kv-cache, --prefill-chunk and --no-graph.
  void add_to(const Command& command);
  /// "bf16, weights int8, cache fp8"
  std::string describe() const;
  inference::EngineOptions engine() const;
  /// UserErrors: another dtype than f32 and bf16, a bad cache format.
  DType checked_dtype() const;
};

/// Random weights are dense where no format is asked for: a UserError where the folder's config.json says
/// that its own are quantized.
void check_random_format(const DecoderOptions& options);

/// A UserError for a weight format that does not divide a layer, for --quantize-head of a tied model, and as
/// check_random_format says.
std::unique_ptr<models::Llama> decoder_model(const DecoderOptions& options, Device device);

/// What a step must read of it: everything but a table that is only looked up in.
double decoded_weight_bytes(models::Llama& model);

std::vector<std::int32_t> random_prompt(std::int64_t length, std::int64_t vocabulary, std::uint64_t which);

}  // namespace ridge
