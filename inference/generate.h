// Decoding one sequence with a cache: the plain path that every faster one is compared with.
#pragma once

#include <functional>
#include <span>
#include <vector>

#include "core/models/llama.h"
#include "inference/sampling.h"

namespace ridge::inference {

/// Of a prompt and what follows it: positions are i32.
inline constexpr std::int64_t kMostTokens = std::int64_t{1} << 30;

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

/// Both in sum; a UserError where they are more than kMostTokens, or less than none is asked for.
std::int64_t tokens_of(std::int64_t prompt, std::int64_t max_new_tokens);

/// `on_token` hears every new id at once; false ends the text. A UserError for an empty prompt, an id
/// outside the embedding, or too many tokens.
Generation generate(models::Llama& model, std::span<const std::int32_t> prompt,
                    const GenerateOptions& options, const std::function<bool(std::int32_t)>& on_token = {});

}  // namespace ridge::inference
