// B sequences, V ids.
#include "kernels/sample.h"

#include <algorithm>
#include <vector>

#include "core/base/launch.h"
#include "core/base/random.h"
#include "core/base/threads.h"
#include "kernels/element.h"
#include "kernels/sample_share.h"

namespace ridge::kernels {
namespace {

using namespace sample_detail;

// Ordered as the most likely first, equals by id.
struct Candidate {
  std::uint64_t order;  // key, then id in 20 bits
  std::uint64_t share;
  std::int32_t id() const { return static_cast<std::int32_t>(order & (kMostIds - 1)); }
  friend bool operator<(const Candidate& a, const Candidate& b) { return a.order < b.order; }
};

std::uint64_t order_of(float logit, std::int64_t id) {
  static_assert(kMostIds == 1 << 20);
  return static_cast<std::uint64_t>(key_of(logit)) << 20 | static_cast<std::uint64_t>(id);
}

std::uint64_t sum_of(const Candidate* begin, const Candidate* end) {
  std::uint64_t sum = 0;
  for (const Candidate* c = begin; c < end; ++c) sum += c->share;
  return sum;
}

struct Reached {
  std::int32_t id;
  std::uint64_t sum;
};

// The first in order whose sum with those before exceeds `limit`, which is below the sum of all. Reorders.
Reached first_beyond(std::vector<Candidate>& all, std::uint64_t limit) {
  Candidate *begin = all.data(), *end = begin + all.size();
  std::uint64_t before = 0;
  while (end - begin > 32) {
    Candidate* middle = begin + (end - begin) / 2;
    std::nth_element(begin, middle, end);
    const std::uint64_t left = sum_of(begin, middle);
    if (before + left > limit) {
      end = middle;
    } else {
      before += left;
      begin = middle;
    }
  }
  std::sort(begin, end);
  for (; begin + 1 < end && before + begin->share <= limit; ++begin) before += begin->share;
  return {begin->id(), before + begin->share};
}

template <class T>
struct Row {
  const T* logits_V;
  std::int64_t count;
  const SampleParameters& p;
  std::uint32_t* seen;  // null: none

  float logit(std::int64_t id) const {
    const float x = load(logits_V[id]);
    const bool again = seen != nullptr && p.repetition_penalty != 1 && is_seen(seen[id / 32], id);
    return again ? penalised(x, p.repetition_penalty) : x;
  }

  // Those with a share, less what top-k leaves out.
  std::vector<Candidate> candidates(float top) const {
    std::vector<Candidate> all;
    for (std::int64_t id = 0; id < count; ++id) {
      const float x = logit(id);
      if (x == -std::numeric_limits<float>::infinity()) continue;
      const std::uint64_t share = share_of(x, top, static_cast<double>(p.temperature));
      if (share > 0) all.push_back({order_of(x, id), share});
    }
    if (p.top_k > 0 && static_cast<std::size_t>(p.top_k) < all.size()) {
      std::nth_element(all.begin(), all.begin() + p.top_k, all.end());
      all.resize(static_cast<std::size_t>(p.top_k));
    }
    return all;
  }

  std::int32_t draw(float top, std::uint64_t step) const {
    std::vector<Candidate> all = candidates(top);
    const std::uint64_t total = sum_of(all.data(), all.data() + all.size());
    std::uint64_t mass = total;
    if (p.top_p < 1) mass = first_beyond(all, wanted_of(total, p.top_p) - 1).sum;
    if (p.min_p > 0) {
      std::uint64_t likely = 0;
      for (const Candidate& c : all) likely += is_likely(c.share, p.min_p) ? c.share : 0;
      mass = std::min(mass, likely);
    }
    const auto words = philox({p.seed, kPhiloxStream}, step);
    return first_beyond(all, drawn_of(mass, words[0], words[1])).id;
  }

  std::int32_t choose(std::int64_t step) const {
    if (step < 0) return -1;
    std::int64_t best = 0;
    float top = -std::numeric_limits<float>::infinity();
    for (std::int64_t id = 0; id < count; ++id) {
      const float x = logit(id);
      if (is_bad(x)) return -1;
      if (x > top) top = x, best = id;
    }
    const bool greedy = !(p.temperature > 0) || top == -std::numeric_limits<float>::infinity();
    const auto id = greedy ? static_cast<std::int32_t>(best) : draw(top, static_cast<std::uint64_t>(step));
    if (seen != nullptr) seen[id / 32] |= 1u << (id % 32);
    return id;
  }
};

}  // namespace

template <class T>
void sample_ids(Stream& stream, View<const T> logits, View<const SampleParameters> parameters,
                View<const std::int64_t> steps, View<std::uint32_t> seen, View<std::int32_t> out) {
  check(logits.ndim() == 2 && logits.dim(1) > 0 && logits.dim(1) <= kMostIds && logits.rows_dense(),
        "sample_ids: logits are [B, V] with dense rows, V at most 2^20");
  const std::int64_t batch = logits.dim(0), count = logits.dim(1), words = (count + 31) / 32;
  check(parameters.shape == Shape{batch} && steps.shape == Shape{batch} && out.shape == Shape{batch} &&
            parameters.contiguous() && steps.contiguous() && out.contiguous(),
        "sample_ids: parameters, steps and out are dense [B]");
  check(seen.ndim() == 0 || (seen.shape == Shape({batch, words}) && seen.contiguous()),
        "sample_ids: seen is dense [B, V / 32 rounded up]");
  if (batch == 0) return;
  const auto on_cpu = [&] {
    parallel_for(batch, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t b = begin; b < end; ++b) {
        std::uint32_t* bits = seen.ndim() == 0 ? nullptr : &seen(b, 0);
        out(b) = Row<T>{&logits(b, 0), count, parameters(b), bits}.choose(steps(b));
      }
    });
  };
  const Work work{static_cast<double>(logits.numel()),  // a comparison an id
                  logits.bytes() + parameters.bytes() + steps.bytes() + out.bytes()};
  launch(stream, "sample_ids", work, on_cpu,
         [&] { cuda::sample_ids<T>(stream, logits, parameters, steps, seen, out); });
}

template void sample_ids(Stream&, View<const float>, View<const SampleParameters>, View<const std::int64_t>,
                         View<std::uint32_t>, View<std::int32_t>);
template void sample_ids(Stream&, View<const bf16>, View<const SampleParameters>, View<const std::int64_t>,
                         View<std::uint32_t>, View<std::int32_t>);

}  // namespace ridge::kernels
