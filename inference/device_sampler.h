// Choosing next tokens where the logits lie: kernels/sample.h with what its sequences need.
// N slots, V vocabulary, W = ceil(V / 32).
#pragma once

#include <span>

#include "core/tensor.h"
#include "inference/sampling.h"

namespace ridge::inference {

class DeviceSampler {
 public:
  /// `vocabulary`: ids below it may be chosen. `penalties`: whether any sequence has a repetition penalty.
  DeviceSampler(std::int64_t slots, std::int64_t vocabulary, bool penalties, Device device);

  bool penalties() const { return seen_.defined(); }
  /// Before the first choice for a slot.
  void begin(std::int64_t slot, const SamplingOptions& options, std::span<const std::int32_t> prompt);
  /// For slots first .. first + B - 1: logits [B, at least V] in f32 or bf16, steps [B] on the device, ids
  /// [B] i32. -1 where a logit is no number or a step is negative.
  void choose(const Tensor& logits_BV, std::int64_t first, View<const std::int64_t> steps_B,
              const Tensor& ids_B) const;

 private:
  std::int64_t vocabulary_;
  Tensor parameters_;  // i32 [N, words of kernels::SampleParameters]
  Tensor seen_;        // i32 [N, W], bits; undefined without penalties
};

}  // namespace ridge::inference
