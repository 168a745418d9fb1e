// The next tokens of a batch from its logits, where they lie: the choice of inference/sampling.h.
//
// B sequences, V ids.
#pragma once

#include <cstdint>

#include "core/base/stream.h"
#include "core/base/view.h"

namespace ridge::kernels {

struct SampleParameters {
  float temperature = 0;         // 0: greedy, the first of the largest logits
  float top_p = 1;               // keep the most likely that make up this share; 1: all
  float min_p = 0;               // keep what has this share of the most likely one's probability; 0: all
  float repetition_penalty = 1;  // on logits of ids seen: / where positive, * else; 1: none
  std::int32_t top_k = 0;        // keep the k most likely, before the others; 0: all
  std::int32_t reserved = 0;
  std::uint64_t seed = 0;
};

/// The most ids that sample_ids takes: shares are summed as whole numbers of 64 bits.
inline constexpr std::int64_t kMostIds = std::int64_t{1} << 20;

/// out[b]: penalty, then temperature, top-k, top-p and min-p, then one draw by (seed, steps[b]). -1 where a
/// logit is NaN or +inf, and where steps[b] < 0 (a row without a sequence). `seen` [B, ceil(V / 32)]: bit id
/// % 32 of word id / 32 is set for the ids that the penalty acts on, and the chosen one's is set here; a View
/// without dims: no penalty. The same choice on every device, whatever the batch. Logits have dense rows, all
/// else is dense. T: float or bf16. Error: more than kMostIds ids.
template <class T>
void sample_ids(Stream& stream, View<const T> logits_BV, View<const SampleParameters> parameters_B,
                View<const std::int64_t> steps_B, View<std::uint32_t> seen, View<std::int32_t> out_B);

/// What `launch` runs on a GPU; arguments are checked already (sample.cu).
namespace cuda {
template <class T>
void sample_ids(Stream& stream, View<const T> logits_BV, View<const SampleParameters> parameters_B,
                View<const std::int64_t> steps_B, View<std::uint32_t> seen, View<std::int32_t> out_B);
}  // namespace cuda

}  // namespace ridge::kernels
