#include "parallel/context_benchmark.h"

#include <chrono>
#include <cmath>
#include <functional>

#include "core/autograd.h"
#include "core/base/cuda.h"
#include "core/base/stream.h"
#include "kernels/fill.h"

namespace ridge::parallel {
namespace {

constexpr int kWarmUps = 3;

void wait_for(Device device) {
  if (device == Device::cuda) cuda::synchronize(current_stream(device));
}

Tensor random_tensor(const Shape& shape, const ContextBenchmark& b, std::uint64_t key) {
  const Tensor x = Tensor::empty(shape, b.dtype, b.device);
  visit_compute(b.dtype, [&]<class T>(std::type_identity<T>) {
    kernels::uniform<T>(current_stream(b.device), x.view<T>(), -1, 1, {key, 0});
  });
  return x;
}

double slowest(Communicator& ranks, double seconds) {
  ranks.all_reduce(std::span<double>(&seconds, 1), Reduce::max);
  return seconds;
}

// Mean seconds of a pass on the slowest rank.
double time_passes(Communicator& ranks, const ContextBenchmark& b, const std::function<void()>& pass) {
  for (int i = 0; i < kWarmUps; ++i) pass();
  wait_for(b.device);
  ranks.barrier();
  const auto begin = std::chrono::steady_clock::now();
  for (int i = 0; i < b.repeats; ++i) pass();
  wait_for(b.device);
  const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
  return slowest(ranks, taken.count() / b.repeats);
}

// Both passes over `tokens` tokens held here. Rotating in place again and again keeps the values' size.
double time_attention(Communicator& ranks, const ContextBenchmark& b, std::int64_t tokens,
                      const nn::SelfAttention& attention) {
  const auto& n = b.heads;
  Tensor qkv = random_tensor({b.batch, tokens, (n.heads + 2 * n.kv_heads) * n.head_dim}, b, 1);
  const Tensor dy = random_tensor({b.batch, tokens, n.heads * n.head_dim}, b, 2);
  nn::RotaryTable table({500000, n.head_dim, b.tokens, {}});
  const auto tables = table.get(attention.positions(tokens), b.device);
  kernels::AttentionOptions options;
  options.scale = 1 / std::sqrt(static_cast<double>(n.head_dim));
  options.deterministic = b.deterministic;
  autograd::set_requires_grad(qkv, true);
  return time_passes(ranks, b, [&] {
    const Tensor y = attention.forward(qkv, n, tables, options);
    autograd::gradients(y, dy, {qkv.edge()});
  });
}

}  // namespace

ContextTiming benchmark_context(Communicator& ranks, const ContextBenchmark& b) {
  check_context(b.tokens, ranks.size());
  check_context_heads(b.kind, b.heads.heads, b.heads.kv_heads, ranks.size());
  require(b.repeats >= 1, "{} repeats of a benchmark: at least 1", b.repeats);
  ContextTiming timing;
  timing.ranks = ranks.size();
  timing.flops = 14 * kernels::visible_pairs(b.tokens, b.tokens, {}) *
                 static_cast<double>(b.batch * b.heads.heads * b.heads.head_dim);
  timing.whole_seconds = time_attention(ranks, b, b.tokens, nn::SelfAttention());
  timing.seconds = time_attention(ranks, b, b.tokens / ranks.size(), *context_attention(b.kind, ranks));
  return timing;
}

}  // namespace ridge::parallel
