// The order in which samples are seen: a pure function, so that a run resumes from its step number alone.
#pragma once

#include <cstdint>

namespace ridge {

/// Sample k of a stream with sequence length T is tokens [kT, kT + T]: inputs are the first T, targets the
/// last T.
class SampleOrder {
 public:
  /// `samples` >= 1. Shuffled orders are a permutation of each epoch's own.
  SampleOrder(std::int64_t samples, bool shuffled, std::uint64_t seed)
      : samples_(samples), shuffled_(shuffled), seed_(seed) {}

  /// The sample at position k of the run; k goes on past the last sample into the next epoch.
  std::int64_t at(std::int64_t k) const;
  std::int64_t samples() const { return samples_; }

  /// Samples of length `sequence_length` in a stream of that many tokens; 0 where it is too short.
  static std::int64_t count(std::int64_t tokens, std::int64_t sequence_length) {
    return tokens > 0 ? (tokens - 1) / sequence_length : 0;
  }

 private:
  std::int64_t samples_;
  bool shuffled_;
  std::uint64_t seed_;
};

}  // namespace ridge
