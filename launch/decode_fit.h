// How long decoded tokens take as their number grows: a line through their latencies.
#pragma once

#include <span>

namespace ridge {

/// latency(n) = base + (n - 1) growth, n = 1, 2, ..., in seconds.
struct LatencyFit {
  double base = 0, growth = 0;
  double p50 = 0, p99 = 0, most = 0;  // of what a token takes beyond the line: its jitter

  double at(double n) const { return base + (n - 1) * growth; }
};

/// The least squares through the medians of runs of tokens that follow one another, so that single late
/// tokens do not turn the line. An Error without latencies; one run's median alone gives no growth.
LatencyFit fit_latency(std::span<const double> seconds);

}  // namespace ridge
