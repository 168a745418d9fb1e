// Attention over a sequence that is spread over ranks against one rank that has all of it, in f64.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <ostream>
#include <string>

#include "core/autograd.h"
#include "core/base/stream.h"
#include "core/ops/attention.h"
#include "core/ops/elementwise.h"
#include "core/ops/shape.h"
#include "kernels/fill.h"
#include "parallel/context_parallel.h"

namespace ridge::test {

using parallel::ContextKind;

/// B sequences of T tokens, H query heads, G key-value heads, D head dim.
struct ContextCase {
  const char* name;
  std::int64_t B, T, H, G, D, window = 0;

  ops::HeadCounts heads() const { return {H, G, D}; }
  kernels::AttentionOptions options() const {
    kernels::AttentionOptions options;
    options.scale = 1.3 / std::sqrt(static_cast<double>(D));
    options.window = window;
    return options;
  }
  nn::RotaryTable::Tables tables(Device device) const {
    return nn::RotaryTable({100, D, T, {}}).get(T + 3, device);  // more rows than are needed
  }
};

inline std::ostream& operator<<(std::ostream& out, const ContextCase& c) { return out << c.name; }

inline Tensor random_on_cpu(const Shape& shape, std::uint64_t key) {
  const Tensor x = Tensor::empty(shape, DType::f64);
  kernels::uniform<double>(current_stream(Device::cpu), x.view<double>(), -1, 1, {key, 7});
  return x;
}

/// Inputs, and what one rank makes of them, by ops of their own: all f64 on the CPU.
struct WholeAttention {
  Tensor qkv, dy;  // [B, T, (H + 2G) D], [B, T, H D]
  Tensor y, dqkv;

  explicit WholeAttention(const ContextCase& c)
      : qkv(random_on_cpu({c.B, c.T, (c.H + 2 * c.G) * c.D}, 1)),
        dy(random_on_cpu({c.B, c.T, c.H * c.D}, 2)) {
    Tensor x = qkv.detached();
    autograd::set_requires_grad(x, true);
    const auto t = c.tables(Device::cpu);
    const Tensor packed = ops::reshape(x, {c.B, c.T, c.H + 2 * c.G, c.D});
    const Tensor q = ops::rotary(ops::slice(packed, 2, 0, c.H), t.cos, t.sin),
                 k = ops::rotary(ops::slice(packed, 2, c.H, c.H + c.G), t.cos, t.sin),
                 v = ops::slice(packed, 2, c.H + c.G, c.H + 2 * c.G);
    const Tensor out = ops::reshape(ops::attention(q, k, v, c.options()), {c.B, c.T, c.H * c.D});
    autograd::backward(out, dy);
    y = out.detached();
    dqkv = autograd::grad_of(x);
  }
};

/// The tokens of x [B, T, C] that a rank holds, one behind the other.
inline Tensor part_of(const Tensor& x, const parallel::Communicator& ranks) {
  Tensor part;
  for (const auto& [begin, end] : parallel::zigzag_ranges(x.dim(1), ranks.size(), ranks.rank())) {
    const Tensor chunk = x.sliced(1, begin, end);
    part = part.defined() ? ops::concat(part, chunk, 1) : chunk.as_contiguous();
  }
  return part;
}

struct PartResult {
  Tensor y, dqkv;
};

/// One rank's forward and backward pass.
inline PartResult run_part(parallel::Communicator& ranks, ContextKind kind, const ContextCase& c,
                           const WholeAttention& whole, DType dtype, Device device) {
  const auto attention = parallel::context_attention(kind, ranks);
  Tensor x = part_of(whole.qkv, ranks).to(dtype).on(device);
  autograd::set_requires_grad(x, true);
  EXPECT_EQ(attention->positions(x.dim(1)), c.T);
  // It rotates what it is given: a copy of x.
  const Tensor y = attention->forward(ops::scale(x, 1), c.heads(), c.tables(device), c.options());
  autograd::backward(y, part_of(whole.dy, ranks).to(dtype).on(device));
  return {y.detached(), autograd::grad_of(x)};
}

/// max |got - want| / max |want|, infinite for a NaN.
inline double relative_error(const Tensor& got, const Tensor& want) {
  const Tensor host = got.on(Device::cpu).as_contiguous().to(DType::f64), wanted = want.as_contiguous();
  EXPECT_EQ(host.shape(), wanted.shape());
  if (!(host.shape() == wanted.shape())) return HUGE_VAL;
  double worst = 0, scale = 0;
  for (std::int64_t i = 0; i < host.numel(); ++i) {
    const auto at = static_cast<std::size_t>(i);
    const double difference = std::abs(host.span<double>()[at] - wanted.span<double>()[at]);
    worst = std::isnan(difference) ? HUGE_VAL : std::max(worst, difference);
    scale = std::max(scale, std::abs(wanted.span<double>()[at]));
  }
  return worst / scale;
}

inline void expect_as_on_one_rank(parallel::Communicator& ranks, ContextKind kind, const ContextCase& c,
                                  const WholeAttention& whole, DType dtype, Device device, double tolerance) {
  const PartResult got = run_part(ranks, kind, c, whole, dtype, device);
  const std::string where = std::string(c.name) + ", rank " + std::to_string(ranks.rank()) + " of " +
                            std::to_string(ranks.size()) + ", " + std::string(name_of(dtype));
  EXPECT_LT(relative_error(got.y, part_of(whole.y, ranks)), tolerance) << "output of " << where;
  EXPECT_LT(relative_error(got.dqkv, part_of(whole.dqkv, ranks)), tolerance) << "gradient of " << where;
}

inline bool same_bits(const Tensor& a, const Tensor& b) {
  const Tensor x = a.on(Device::cpu).as_contiguous(), y = b.on(Device::cpu).as_contiguous();
  return x.shape() == y.shape() && x.dtype() == y.dtype() &&
         std::memcmp(x.data(), y.data(), static_cast<std::size_t>(x.bytes())) == 0;
}

}  // namespace ridge::test
