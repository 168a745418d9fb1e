#include "launch/decode_fit.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/base/error.h"

namespace ridge {
namespace {

constexpr std::size_t kRuns = 64;

double quantile(std::vector<double> values, double share) {
  const auto at = static_cast<std::size_t>(share * static_cast<double>(values.size() - 1) + 0.5);
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(at), values.end());
  return values[at];
}

struct Point {
  double n, seconds;
};

// The middle number of each run, and its median.
std::vector<Point> medians(std::span<const double> seconds) {
  const std::size_t runs = std::min(kRuns, seconds.size());
  std::vector<Point> points;
  for (std::size_t r = 0; r < runs; ++r) {
    const std::size_t begin = seconds.size() * r / runs, end = seconds.size() * (r + 1) / runs;
    const double middle = 0.5 * static_cast<double>(begin + 1 + end);
    points.push_back({middle, quantile({seconds.begin() + static_cast<std::ptrdiff_t>(begin),
                                        seconds.begin() + static_cast<std::ptrdiff_t>(end)},
                                       0.5)});
  }
  return points;
}

}  // namespace

LatencyFit fit_latency(std::span<const double> seconds) {
  check(!seconds.empty(), "latencies to fit");
  const std::vector<Point> points = medians(seconds);
  double n = 0, y = 0, nn = 0, ny = 0;
  const auto count = static_cast<double>(points.size());
  for (const Point& p : points) {
    n += p.n / count;
    y += p.seconds / count;
  }
  for (const Point& p : points) {
    nn += (p.n - n) * (p.n - n);
    ny += (p.n - n) * (p.seconds - y);
  }
  LatencyFit fit;
  fit.growth = nn > 0 ? ny / nn : 0;
  fit.base = y - (n - 1) * fit.growth;
  std::vector<double> late;
  for (std::size_t i = 0; i < seconds.size(); ++i)
    late.push_back(seconds[i] - fit.at(static_cast<double>(i + 1)));
  fit.p50 = quantile(late, 0.5);
  fit.p99 = quantile(late, 0.99);
  fit.most = *std::max_element(late.begin(), late.end());
  return fit;
}

}  // namespace ridge
