#include "kernels/sgd.h"

#include "core/base/launch.h"
#include "core/base/threads.h"
#include "kernels/optimizer_step.h"

namespace ridge::kernels {
namespace {

constexpr std::int64_t kElementsPerTask = 16384;

template <bool kMomentum, class Parameter>
void sgd_row(Parameter p, const float* grad, float* buffer, SgdFactors f, float grad_scale, std::int64_t n) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) {
    const float before = p.get(i), g = grad[i] * grad_scale + f.weight_decay * before;
    float direction = g;
    if constexpr (kMomentum) {
      const float b = f.first ? g : buffer[i] * f.momentum + f.blend * g;
      buffer[i] = b;
      direction = f.nesterov ? g + f.momentum * b : b;
    }
    p.set(i, before - f.lr * direction);
  }
}

template <class Parameter>
void run_on_cpu(Parameter p, View<const float> grad, View<float> momentum, const SgdStep& s) {
  const std::optional<float> scale = GradientFactor{s.norm, s.clip, s.grad_scale}.on_cpu();
  if (!scale.has_value()) return;
  const SgdFactors factors(s);
  parallel_for(grad.numel(), kElementsPerTask, [&](std::int64_t begin, std::int64_t end) {
    const float* g = grad.data + begin;
    if (s.momentum == 0)
      sgd_row<false>(p.from(begin), g, nullptr, factors, *scale, end - begin);
    else
      sgd_row<true>(p.from(begin), g, momentum.data + begin, factors, *scale, end - begin);
  });
}

Work work_of(const View<const float>& grad, double param_bytes, const SgdStep& s) {
  const double n = static_cast<double>(grad.numel());
  return {(s.momentum != 0 ? 8 : 5) * n, 2 * param_bytes + (s.momentum != 0 ? 3 : 1) * grad.bytes()};
}

void check_step(const View<const float>& grad, const View<float>& momentum, const SgdStep& s) {
  check(s.step >= 1, "sgd: steps count from 1");
  if (s.momentum != 0) check_optimizer_operands(grad, momentum);
}

}  // namespace

void sgd(Stream& stream, View<float> param, View<const float> grad, View<float> momentum,
         const SgdStep& step) {
  check_optimizer_operands(param, grad);
  check_step(grad, momentum, step);
  launch(
      stream, "sgd", work_of(grad, param.bytes(), step),
      [&] { run_on_cpu(PlainParameter{param.data}, grad, momentum, step); },
      [&] { cuda::sgd(stream, param, {}, {}, grad, momentum, step); });
}

void sgd(Stream& stream, View<bf16> param, View<std::int16_t> low, View<const float> grad,
         View<float> momentum, const SgdStep& step) {
  check_optimizer_operands(param, low, grad);
  check_step(grad, momentum, step);
  launch(
      stream, "sgd", work_of(grad, param.bytes() + low.bytes(), step),
      [&] {
        run_on_cpu(SplitParameter{param.data, low.data}, grad, momentum, step);
      },
      [&] { cuda::sgd(stream, {}, param, low, grad, momentum, step); });
}

}  // namespace ridge::kernels
