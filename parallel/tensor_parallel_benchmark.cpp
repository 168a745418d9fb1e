#include "parallel/tensor_parallel_benchmark.h"

#include <chrono>
#include <functional>

#include "core/autograd.h"
#include "core/base/cuda.h"
#include "core/base/stream.h"
#include "core/ops/activation.h"
#include "kernels/fill.h"
#include "parallel/collective_ops.h"

namespace ridge::parallel {
namespace {

constexpr int kWarmUps = 3;

void wait_for(Device device) {
  if (device == Device::cuda) cuda::synchronize(current_stream(device));
}

Tensor random_tensor(const Shape& shape, const TensorParallelBenchmark& b, std::uint64_t key) {
  const Tensor x = Tensor::empty(shape, b.dtype, b.device);
  visit_compute(b.dtype, [&]<class T>(std::type_identity<T>) {
    kernels::uniform<T>(current_stream(b.device), x.view<T>(), -0.02, 0.02, {key, 0});
  });
  return x;
}

double time_passes(Communicator& ranks, const TensorParallelBenchmark& b, const std::function<void()>& pass) {
  for (int i = 0; i < kWarmUps; ++i) pass();
  wait_for(b.device);
  ranks.barrier();
  const auto begin = std::chrono::steady_clock::now();
  for (int i = 0; i < b.repeats; ++i) pass();
  wait_for(b.device);
  const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
  double seconds = taken.count() / b.repeats;
  ranks.all_reduce(std::span<double>(&seconds, 1), Reduce::max);
  return seconds;
}

// Gradients of weights add up in their place, as in training.
double time_mlp(Communicator& ranks, const TensorParallelBenchmark& b, const TensorParallelism& how) {
  const std::int64_t width = b.intermediate / ranks.size();
  const std::int64_t tokens = b.tokens / (how.sequence_parallel ? how.tp->size() : 1);
  Tensor x = random_tensor({b.batch, tokens, b.hidden}, b, 1), down = random_tensor({b.hidden, width}, b, 2);
  const Tensor gate_up = random_tensor({2 * width, b.hidden}, b, 3), dy = random_tensor(x.shape(), b, 4);
  Tensor gate = gate_up.sliced(0, 0, width), up = gate_up.sliced(0, width, 2 * width);
  for (Tensor* leaf : {&x, &down, &gate, &up}) autograd::set_requires_grad(*leaf, true);
  return time_passes(ranks, b, [&] {
    const Tensor h = column_linear(how, x, {gate, up}, {Tensor(), Tensor()}).first;
    autograd::backward(row_linear(how, ops::swiglu_packed(h), down, {}), dy);
  });
}

}  // namespace

TensorParallelTiming benchmark_tensor_parallel(Communicator& ranks, const TensorParallelBenchmark& b) {
  require(b.repeats >= 1, "{} repeats of a benchmark: at least 1", b.repeats);
  require(b.intermediate % ranks.size() == 0, "an MLP of width {} cannot be cut for {} ranks", b.intermediate,
          ranks.size());
  if (b.sequence_parallel) check_sequence(b.tokens, ranks.size());
  const auto self = self_communicator();
  TensorParallelTiming timing;
  timing.ranks = ranks.size();
  timing.flops = 3 * 2.0 * static_cast<double>(b.batch * b.tokens) * static_cast<double>(b.hidden) * 3 *
                 static_cast<double>(b.intermediate) / ranks.size();
  timing.products = time_mlp(ranks, b, {self.get(), false, 1});
  timing.plain = time_mlp(ranks, b, {&ranks, b.sequence_parallel, 1});
  timing.overlapped = time_mlp(ranks, b, {&ranks, b.sequence_parallel, b.chunks, b.peers});
  return timing;
}

}  // namespace ridge::parallel
