// Attention as its definition says, in f64 over dense arrays: what the kernels are tested against.
#pragma once

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "core/base/dtype.h"
#include "core/base/view.h"
#include "kernels/attention.h"
#include "tests/test_device.h"

namespace ridge::kernels::reference {

/// A [B, T, H, D] array that may lie inside a wider buffer: `skip` elements of other heads on both sides.
template <class T>
struct Array {
  std::int64_t B, T_, H, D, skip;
  test::Memory<T> data;

  Array(std::int64_t b, std::int64_t t, std::int64_t h, std::int64_t d, std::int64_t skip_elements = 0)
      : B(b), T_(t), H(h), D(d), skip(skip_elements), data(static_cast<std::size_t>(b * t * row() + 1)) {}
  std::int64_t row() const { return H * D + 2 * skip; }
  View<T> view() { return {data.data() + skip, {B, T_, H, D}, {T_ * row(), row(), D, 1}}; }
  std::int64_t index(std::int64_t b, std::int64_t t, std::int64_t h, std::int64_t d) const {
    return skip + (b * T_ + t) * row() + h * D + d;
  }
  void add(std::int64_t b, std::int64_t t, std::int64_t h, std::int64_t d, double x) {
    data[static_cast<std::size_t>(index(b, t, h, d))] += x;
  }
  void randomize(unsigned seed, double deviation = 1) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal(0, static_cast<float>(deviation));
    for (T& x : data) x = T(normal(random));
  }
  double operator()(std::int64_t b, std::int64_t t, std::int64_t h, std::int64_t d) {
    return static_cast<double>(static_cast<acc_t<T>>(data[static_cast<std::size_t>(index(b, t, h, d))]));
  }
};

struct Result {
  Array<double> o, dq, dk, dv;
  std::vector<double> lse;  // [B, H, T]
};

inline bool visible(std::int64_t t, std::int64_t j, std::int64_t offset, const AttentionOptions& options) {
  const std::int64_t i = offset + t;
  if (options.causal && j > i) return false;
  return options.window == 0 || j > i - options.window;
}

/// Forward and, from `grad`, backward.
template <class T>
Result attention(Array<T>& q, Array<T>& k, Array<T>& v, Array<T>& grad, const AttentionOptions& options) {
  const std::int64_t S = k.T_, group = q.H / k.H,
                     offset = options.q_offset == -1 ? S - q.T_ : options.q_offset;
  Result r{{q.B, q.T_, q.H, q.D}, {q.B, q.T_, q.H, q.D}, {k.B, S, k.H, k.D}, {k.B, S, k.H, k.D}, {}};
  const auto dot = [&](Array<T>& a, std::int64_t t, std::int64_t h, Array<T>& c, std::int64_t j,
                       std::int64_t g, std::int64_t b) {
    double sum = 0;
    for (std::int64_t d = 0; d < q.D; ++d) sum += a(b, t, h, d) * c(b, j, g, d);
    return sum;
  };
  std::vector<double> p(static_cast<std::size_t>(S)), dp(p.size());
  for (std::int64_t b = 0; b < q.B; ++b) {
    for (std::int64_t h = 0; h < q.H; ++h) {
      for (std::int64_t t = 0; t < q.T_; ++t) {
        const std::int64_t g = h / group;
        double sum = 0, delta = 0, peak = -std::numeric_limits<double>::infinity();
        for (std::int64_t j = 0; j < S; ++j) {
          if (!visible(t, j, offset, options)) continue;
          p[j] = options.scale * dot(q, t, h, k, j, g, b);
          dp[j] = dot(grad, t, h, v, j, g, b);
          peak = std::max(peak, p[j]);
        }
        for (std::int64_t j = 0; j < S; ++j) {
          p[j] = visible(t, j, offset, options) ? std::exp(p[j] - peak) : 0;
          sum += p[j];
        }
        r.lse.push_back(sum > 0 ? peak + std::log(sum) : -std::numeric_limits<double>::infinity());
        for (std::int64_t j = 0; j < S; ++j) {
          if (!visible(t, j, offset, options)) continue;
          p[j] /= sum;
          delta += p[j] * dp[j];
          for (std::int64_t d = 0; d < q.D; ++d) r.o.add(b, t, h, d, p[j] * v(b, j, g, d));
        }
        for (std::int64_t j = 0; j < S; ++j) {
          if (!visible(t, j, offset, options)) continue;
          const double ds = p[j] * (dp[j] - delta) * options.scale;
          for (std::int64_t d = 0; d < q.D; ++d) {
            r.dv.add(b, j, g, d, p[j] * grad(b, t, h, d));
            r.dk.add(b, j, g, d, ds * q(b, t, h, d));
            r.dq.add(b, t, h, d, ds * k(b, j, g, d));
          }
        }
      }
    }
  }
  return r;
}

/// max |a - b| / max |b|; NaN counts as infinite.
template <class T>
double error_of(Array<T>& a, Array<double>& b) {
  double worst = 0, scale = 0;
  for (std::int64_t i = 0; i < b.B; ++i) {
    for (std::int64_t t = 0; t < b.T_; ++t) {
      for (std::int64_t h = 0; h < b.H; ++h) {
        for (std::int64_t d = 0; d < b.D; ++d) {
          const double difference = std::abs(a(i, t, h, d) - b(i, t, h, d));
          worst = difference <= worst ? worst : std::isnan(difference) ? HUGE_VAL : difference;
          scale = std::max(scale, std::abs(b(i, t, h, d)));
        }
      }
    }
  }
  return scale > 0 ? worst / scale : worst;
}

}  // namespace ridge::kernels::reference
