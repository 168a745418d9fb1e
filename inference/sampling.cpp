#include "inference/sampling.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "core/base/error.h"

namespace ridge::inference {
namespace {

std::vector<std::int32_t> most_likely(std::span<const float> logits, std::int64_t top_k) {
  std::vector<std::int32_t> ids(logits.size());
  std::iota(ids.begin(), ids.end(), 0);
  const auto before = [&](std::int32_t a, std::int32_t b) {
    const float x = logits[static_cast<std::size_t>(a)], y = logits[static_cast<std::size_t>(b)];
    return x > y || (x == y && a < b);
  };
  const bool cut = top_k > 0 && top_k < static_cast<std::int64_t>(ids.size());
  if (cut) {
    std::partial_sort(ids.begin(), ids.begin() + top_k, ids.end(), before);
    ids.resize(static_cast<std::size_t>(top_k));
  } else {
    std::sort(ids.begin(), ids.end(), before);
  }
  return ids;
}

// -inf stands for a token that is ruled out; NaN has no order, and no share is left beside +inf.
void check_finite(std::span<const float> logits, std::uint64_t step) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const auto bad = std::find_if(logits.begin(), logits.end(), [](float x) { return !(x < kInfinity); });
  require(
      bad == logits.end(),
      "new token {}: the model gives id {} the logit {}: its weights are damaged or do not fit this dtype",
      step, bad - logits.begin(), bad == logits.end() ? 0.0f : *bad);
}

}  // namespace

std::int32_t sample(std::span<const float> logits, const SamplingOptions& options, std::uint64_t step) {
  check(!logits.empty(), "logits of at least one token");
  check_finite(logits, step);
  if (options.temperature <= 0) {
    return static_cast<std::int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
  }
  const std::vector<std::int32_t> ids = most_likely(logits, options.top_k);
  const double top = logits[static_cast<std::size_t>(ids.front())];
  std::vector<double> weight;
  double total = 0;
  for (const std::int32_t id : ids) {
    weight.push_back(std::exp((logits[static_cast<std::size_t>(id)] - top) / options.temperature));
    total += weight.back();
  }
  std::size_t kept = 0;
  double mass = 0;
  while (kept < ids.size() && (kept == 0 || mass < options.top_p * total)) mass += weight[kept++];
  const auto words = philox({options.seed, 0x73616D706C65ull}, step);
  const double u = (static_cast<double>(words[0]) + static_cast<double>(words[1]) * 0x1p-32) * 0x1p-32;
  double target = u * mass;
  for (std::size_t i = 0; i < kept; ++i) {
    target -= weight[i];
    if (target < 0) return ids[i];
  }
  return ids[kept - 1];
}

}  // namespace ridge::inference
