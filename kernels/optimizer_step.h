// What the optimizers' kernels share: the scalars of a step, the factor on the gradient, and a parameter as
// f32, or as bf16 with the rest of its f32 master.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <optional>

#include "core/base/dtype.h"
#include "core/base/view.h"
#include "kernels/adamw.h"

namespace ridge::kernels {

/// In double until the last rounding, as PyTorch computes them.
struct AdamWFactors {
  explicit AdamWFactors(const AdamWStep& s)
      : decay(static_cast<float>(1 - s.lr * s.weight_decay)),
        blend_m(static_cast<float>(1 - s.beta1)),
        keep_v(static_cast<float>(s.beta2)),
        blend_v(static_cast<float>(1 - s.beta2)),
        root_factor(static_cast<float>(1 / std::sqrt(1 - std::pow(s.beta2, static_cast<double>(s.step))))),
        eps(static_cast<float>(s.eps)),
        step_size(static_cast<float>(s.lr / (1 - std::pow(s.beta1, static_cast<double>(s.step))))) {}

  float decay, blend_m, keep_v, blend_v, root_factor, eps, step_size;
};

struct SgdFactors {
  explicit SgdFactors(const SgdStep& s)
      : weight_decay(static_cast<float>(s.weight_decay)),
        momentum(static_cast<float>(s.momentum)),
        blend(static_cast<float>(1 - s.dampening)),
        lr(static_cast<float>(s.lr)),
        nesterov(s.nesterov),
        first(s.step == 1) {}

  float weight_decay, momentum, blend, lr;
  bool nesterov, first;
};

/// The gradient is multiplied by `scale`, and by min(1, clip / (*norm + 1e-6)) where both are given. Kernels
/// on a GPU read the norm there.
struct GradientFactor {
  const double* norm = nullptr;
  double clip = 0;
  double scale = 1;

  /// Nothing where the norm is not finite: the step is left out.
  std::optional<float> on_cpu() const {
    if (norm == nullptr) return static_cast<float>(scale);
    if (!std::isfinite(*norm)) return std::nullopt;
    return static_cast<float>(clip > 0 ? scale * std::min(1.0, clip / (*norm + 1e-6)) : scale);
  }
};

/// An f32 master is the bf16 nearest to it and a signed remainder: bits(master) = (bits(value) << 16) + low.
/// Of the remainder +0x8000, a tie that was rounded down to even, 0x7FFF is kept.
inline float joined(const bf16& value, std::int16_t low) {
  const auto rest = static_cast<std::uint32_t>(static_cast<std::int32_t>(low));
  return std::bit_cast<float>((static_cast<std::uint32_t>(value.bits) << 16) + rest);
}
inline void split(float master, bf16& value, std::int16_t& low) {
  const std::uint16_t nearest = bf16(master).bits;
  const auto rest = static_cast<std::int32_t>(std::bit_cast<std::uint32_t>(master) -
                                              (static_cast<std::uint32_t>(nearest) << 16));
  value.bits = nearest;
  low = static_cast<std::int16_t>(master != master ? 0 : (rest > 0x7FFF ? 0x7FFF : rest));
}

/// Element i of a parameter that is its own master.
struct PlainParameter {
  float* value;
  float get(std::int64_t i) const { return value[i]; }
  void set(std::int64_t i, float x) const { value[i] = x; }
  PlainParameter from(std::int64_t i) const { return {value + i}; }
};

/// Element i of a parameter whose master is split.
struct SplitParameter {
  bf16* value;
  std::int16_t* low;
  float get(std::int64_t i) const { return joined(value[i], low[i]); }
  void set(std::int64_t i, float x) const { split(x, value[i], low[i]); }
  SplitParameter from(std::int64_t i) const { return {value + i, low + i}; }
};

template <class First, class... T>
void check_optimizer_operands(const View<First>& param, const View<T>&... others) {
  check(((others.shape == param.shape) && ...), "optimizer state and gradient of the parameter's shape");
  check(param.contiguous() && (others.contiguous() && ...), "optimizer operands are contiguous");
}

}  // namespace ridge::kernels
