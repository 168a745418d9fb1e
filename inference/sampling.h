// Choosing the next token from logits.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/base/random.h"

namespace ridge::inference {

/// Factors are rounded to f32, in which the device has them.
struct SamplingOptions {
  double temperature = 0;  // 0: greedy, the first of the largest logits
  std::int64_t top_k = 0;  // keep the k most likely; 0: all
  double top_p = 1;        // then keep the most likely that make up this probability (Holtzman et al., 2019)
  std::uint64_t seed = 0;
  double min_p = 0;  // of those keep what has this share of the most likely one's (Nguyen et al., 2024)
  double repetition_penalty = 1;  // first, logits of ids seen: / where positive, * else (Keskar et al., 2019)

  bool operator==(const SamplingOptions&) const = default;
};

/// A UserError that names the option and its value where it has no meaning.
void check_sampling(const SamplingOptions& options);

/// Bit id % 32 of word id / 32 of `seen` is set for an id that the prompt or the output has: what the penalty
/// acts on. Enough words for ids below `vocabulary`.
std::vector<std::uint32_t> seen_words(std::span<const std::int32_t> ids, std::int64_t vocabulary);

/// One id. `step` numbers the draws of a sequence: the same seed and step give the same id. `seen` as above,
/// or empty: no penalty. A UserError for a logit that is NaN or +inf.
std::int32_t sample(std::span<const float> logits_V, const SamplingOptions& options, std::uint64_t step,
                    std::span<const std::uint32_t> seen = {});

}  // namespace ridge::inference
