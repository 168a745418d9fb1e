// Choosing the next token from logits.
#pragma once

#include <cstdint>
#include <span>

#include "core/base/random.h"

namespace ridge::inference {

struct SamplingOptions {
  double temperature = 0;  // 0: greedy, the first of the largest logits
  std::int64_t top_k = 0;  // keep the k most likely; 0: all
  double top_p = 1;        // then keep the most likely that make up this probability (Holtzman et al., 2019)
  std::uint64_t seed = 0;
};

/// One id. `step` numbers the draws of a sequence: the same seed and step give the same id. A UserError for a
/// logit that is NaN or +inf.
std::int32_t sample(std::span<const float> logits_V, const SamplingOptions& options, std::uint64_t step);

}  // namespace ridge::inference
