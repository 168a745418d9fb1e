#include "kernels/adamw.h"

#include <cmath>

#include "core/base/launch.h"
#include "core/base/threads.h"
#include "kernels/element.h"

namespace ridge::kernels {
namespace {

constexpr std::int64_t kElementsPerTask = 16384;

/// The step's scalars, in double until the last rounding, as PyTorch computes them.
struct AdamFactors {
  explicit AdamFactors(const AdamWStep& s)
      : decay(static_cast<float>(1 - s.lr * s.weight_decay)),
        grad_scale(static_cast<float>(s.grad_scale)),
        blend_m(static_cast<float>(1 - s.beta1)),
        keep_v(static_cast<float>(s.beta2)),
        blend_v(static_cast<float>(1 - s.beta2)),
        root_correction(static_cast<float>(std::sqrt(1 - std::pow(s.beta2, static_cast<double>(s.step))))),
        eps(static_cast<float>(s.eps)),
        step_size(static_cast<float>(s.lr / (1 - std::pow(s.beta1, static_cast<double>(s.step))))) {}

  float decay, grad_scale, blend_m, keep_v, blend_v, root_correction, eps, step_size;
};

template <bool kCopies>
void adamw_row(float* p, const float* grad, float* m, float* v, bf16* copy, AdamFactors f, std::int64_t n) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) {
    const float g = grad[i] * f.grad_scale;
    const float first = m[i] + f.blend_m * (g - m[i]);
    const float second = v[i] * f.keep_v + f.blend_v * g * g;
    const float denominator = std::sqrt(second) / f.root_correction + f.eps;
    const float updated = p[i] * f.decay - f.step_size * first / denominator;
    m[i] = first;
    v[i] = second;
    p[i] = updated;
    if constexpr (kCopies) store(copy[i], updated);
  }
}

struct SgdFactors {
  float grad_scale, weight_decay, momentum, blend, lr;
  bool nesterov, first;
};

template <bool kMomentum, bool kCopies>
void sgd_row(float* p, const float* grad, float* buffer, bf16* copy, SgdFactors f, std::int64_t n) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) {
    const float g = grad[i] * f.grad_scale + f.weight_decay * p[i];
    float direction = g;
    if constexpr (kMomentum) {
      const float b = f.first ? g : buffer[i] * f.momentum + f.blend * g;
      buffer[i] = b;
      direction = f.nesterov ? g + f.momentum * b : b;
    }
    p[i] -= f.lr * direction;
    if constexpr (kCopies) store(copy[i], p[i]);
  }
}

template <class... T>
void check_operands(const View<float>& param, const View<bf16>& copy, const View<T>&... others) {
  check(((others.shape == param.shape) && ...), "optimizer state and gradient of the parameter's shape");
  check(param.contiguous() && (others.contiguous() && ...), "optimizer operands are contiguous");
  check(copy.ndim() == 0 || (copy.shape == param.shape && copy.contiguous()),
        "copy of the parameter's shape");
}

template <bool kCopies>
void run_adamw(Stream& stream, View<float> param, View<const float> grad, View<float> m, View<float> v,
               View<bf16> copy, const AdamWStep& step) {
  check_operands(param, copy, grad, m, v);
  check(step.step >= 1, "adamw: steps count from 1");
  const Work work{15 * static_cast<double>(param.numel()), 7 * param.bytes() + (kCopies ? copy.bytes() : 0)};
  launch(stream, "adamw", work, [&] {
    const AdamFactors factors(step);
    parallel_for(param.numel(), kElementsPerTask, [&](std::int64_t begin, std::int64_t end) {
      adamw_row<kCopies>(param.data + begin, grad.data + begin, m.data + begin, v.data + begin,
                         kCopies ? copy.data + begin : nullptr, factors, end - begin);
    });
  });
}

template <bool kMomentum, bool kCopies>
void run_sgd(Stream& stream, View<float> param, View<const float> grad, View<float> momentum, View<bf16> copy,
             const SgdStep& s) {
  const double n = static_cast<double>(param.numel());
  const double bytes = (kMomentum ? 5 : 3) * param.bytes() + (kCopies ? copy.bytes() : 0);
  const SgdFactors factors{static_cast<float>(s.grad_scale),
                           static_cast<float>(s.weight_decay),
                           static_cast<float>(s.momentum),
                           static_cast<float>(1 - s.dampening),
                           static_cast<float>(s.lr),
                           s.nesterov,
                           s.step == 1};
  launch(stream, "sgd", Work{(kMomentum ? 8 : 5) * n, bytes}, [&] {
    parallel_for(param.numel(), kElementsPerTask, [&](std::int64_t begin, std::int64_t end) {
      sgd_row<kMomentum, kCopies>(param.data + begin, grad.data + begin,
                                  kMomentum ? momentum.data + begin : nullptr,
                                  kCopies ? copy.data + begin : nullptr, factors, end - begin);
    });
  });
}

template <bool kCopies>
void choose_sgd(Stream& stream, View<float> param, View<const float> grad, View<float> momentum,
                View<bf16> copy, const SgdStep& s) {
  check_operands(param, copy, grad);
  check(s.step >= 1, "sgd: steps count from 1");
  if (s.momentum == 0) return run_sgd<false, kCopies>(stream, param, grad, momentum, copy, s);
  check_operands(param, copy, momentum);
  run_sgd<true, kCopies>(stream, param, grad, momentum, copy, s);
}

}  // namespace

void adamw(Stream& stream, View<float> param, View<const float> grad, View<float> m, View<float> v,
           const AdamWStep& step) {
  run_adamw<false>(stream, param, grad, m, v, View<bf16>(), step);
}

void adamw(Stream& stream, View<float> param, View<const float> grad, View<float> m, View<float> v,
           View<bf16> copy, const AdamWStep& step) {
  check(copy.shape == param.shape, "adamw: copy of the parameter's shape");
  run_adamw<true>(stream, param, grad, m, v, copy, step);
}

void sgd(Stream& stream, View<float> param, View<const float> grad, View<float> momentum,
         const SgdStep& step) {
  choose_sgd<false>(stream, param, grad, momentum, View<bf16>(), step);
}

void sgd(Stream& stream, View<float> param, View<const float> grad, View<float> momentum, View<bf16> copy,
         const SgdStep& step) {
  check(copy.shape == param.shape, "sgd: copy of the parameter's shape");
  choose_sgd<true>(stream, param, grad, momentum, copy, step);
}

}  // namespace ridge::kernels
