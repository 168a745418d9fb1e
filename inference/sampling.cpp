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

std::vector<float> penalised(std::span<const float> logits, float penalty,
                             std::span<const std::uint32_t> seen) {
  std::vector<float> out(logits.begin(), logits.end());
  if (penalty == 1) return out;
  for (std::size_t id = 0; id < out.size() && id / 32 < seen.size(); ++id) {
    if ((seen[id / 32] >> (id % 32) & 1u) != 0) out[id] = out[id] > 0 ? out[id] / penalty : out[id] * penalty;
  }
  return out;
}

// Probabilities that are left, most likely first, not yet divided by their sum.
struct Choices {
  std::vector<std::int32_t> ids;
  std::vector<double> weight;
  std::size_t kept = 0;
  double mass = 0;  // of those kept
};

Choices choices_of(std::span<const float> logits, const SamplingOptions& options, double temperature) {
  Choices c{most_likely(logits, options.top_k), {}, 0, 0};
  const double top = logits[static_cast<std::size_t>(c.ids.front())];
  const double top_p = static_cast<float>(options.top_p), min_p = static_cast<float>(options.min_p);
  double total = 0;
  for (const std::int32_t id : c.ids) {
    c.weight.push_back(std::exp((logits[static_cast<std::size_t>(id)] - top) / temperature));
    total += c.weight.back();
  }
  const auto wanted = [&](std::size_t i) {
    return i == 0 || (c.mass < top_p * total && c.weight[i] >= min_p);  // the first has weight 1
  };
  while (c.kept < c.ids.size() && wanted(c.kept)) c.mass += c.weight[c.kept++];
  return c;
}

}  // namespace

void check_sampling(const SamplingOptions& s) {
  require(s.temperature >= 0 && std::isfinite(s.temperature),
          "--temperature is {}: give a finite number of at least 0", s.temperature);
  require(s.top_k >= 0, "--top-k is {}: give at least 0", s.top_k);
  require(s.top_p > 0 && s.top_p <= 1, "--top-p is {}: give more than 0 and at most 1", s.top_p);
  require(s.min_p >= 0 && s.min_p <= 1, "--min-p is {}: give 0 to 1", s.min_p);
  require(s.repetition_penalty > 0 && s.repetition_penalty <= 1e6,
          "--repetition-penalty is {}: give more than 0 and at most 1000000", s.repetition_penalty);
}

std::vector<std::uint32_t> seen_words(std::span<const std::int32_t> ids, std::int64_t vocabulary) {
  std::vector<std::uint32_t> words(static_cast<std::size_t>((vocabulary + 31) / 32));
  for (const std::int32_t id : ids) {
    check(id >= 0 && id < vocabulary, "an id of the vocabulary");
    words[static_cast<std::size_t>(id) / 32] |= 1u << (id % 32);
  }
  return words;
}

std::int32_t sample(std::span<const float> given, const SamplingOptions& options, std::uint64_t step,
                    std::span<const std::uint32_t> seen) {
  check(!given.empty(), "logits of at least one token");
  check_finite(given, step);
  const std::vector<float> logits = penalised(given, static_cast<float>(options.repetition_penalty), seen);
  const double temperature = static_cast<float>(options.temperature);
  if (temperature <= 0)
    return static_cast<std::int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
  const Choices c = choices_of(logits, options, temperature);
  const auto words = philox({options.seed, 0x73616D706C65ull}, step);
  const double u = (static_cast<double>(words[0]) + static_cast<double>(words[1]) * 0x1p-32) * 0x1p-32;
  double target = u * c.mass;
  for (std::size_t i = 0; i < c.kept; ++i) {
    target -= c.weight[i];
    if (target < 0) return c.ids[i];
  }
  return c.ids[c.kept - 1];
}

}  // namespace ridge::inference
