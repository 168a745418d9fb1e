// Decoding one sequence with a cache: the plain path that every faster one is compared with.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "core/models/llama.h"
#include "inference/sampling.h"

namespace ridge::inference {

struct GenerateOptions {
  std::int64_t max_new_tokens = 128;
  SamplingOptions sampling = {};
  std::vector<std::int64_t> stop_ids = {};  // generation ends after one of these; empty: never
  std::int64_t vocabulary = 0;  // ids from here on have no token and are never chosen; 0: all have
};

struct Generation {
  std::vector<std::int32_t> ids;  // the new ones, with the stop id where there was one
  double prefill_seconds = 0;
  double decode_seconds = 0;
  std::int64_t decoded = 0;  // tokens that decode_seconds made
};

/// `on_token` hears every new id at once; false ends the text. A UserError for an empty prompt or an id
/// outside the embedding.
Generation generate(models::Llama& model, std::span<const std::int32_t> prompt,
                    const GenerateOptions& options, const std::function<bool(std::int32_t)>& on_token = {});

}  // namespace ridge::inference
