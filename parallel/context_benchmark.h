// How fast attention over a spread sequence is, beside one rank that has all of it.
#pragma once

#include "core/ops/attention.h"
#include "parallel/context_parallel.h"

namespace ridge::parallel {

struct ContextBenchmark {
  ContextKind kind = ContextKind::ring;
  std::int64_t batch = 1;
  std::int64_t tokens = 32768;  // of the whole sequence
  ops::HeadCounts heads{32, 8, 128};
  DType dtype = DType::bf16;
  Device device = Device::cuda;
  bool deterministic = true;
  int repeats = 10;
};

/// Forward and backward pass together, rotary positions included; the slowest rank's mean over the repeats.
struct ContextTiming {
  double seconds = 0;        // spread over the ranks
  double whole_seconds = 0;  // the whole sequence on every rank by itself
  double flops = 0;          // of the whole sequence: 14 D a visible pair and query head
  int ranks = 1;

  double flops_per_s() const { return flops / seconds / ranks; }  // of one rank
  /// The share of one rank's own speed that is kept.
  double efficiency() const { return whole_seconds / seconds / ranks; }
};

/// Every rank calls it. Random inputs; a few passes first, which are not timed.
ContextTiming benchmark_context(Communicator& ranks, const ContextBenchmark& benchmark);

}  // namespace ridge::parallel
