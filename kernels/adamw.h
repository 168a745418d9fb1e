// Optimizer updates of one parameter, in place, with PyTorch's semantics and order of operations.
// Views are contiguous, of any one shape.
#pragma once

#include <cstdint>

#include "core/base/dtype.h"
#include "core/base/stream.h"
#include "core/base/view.h"

namespace ridge::kernels {

/// AdamW (Loshchilov and Hutter, 2019); the decay is decoupled.
struct AdamWStep {
  double lr = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0.01;
  std::int64_t step = 1;  // from 1
  double grad_scale = 1;  // the gradient is multiplied by this first: clipping, averaging, loss scaling
};

/// m and v start as zeros before step 1.
void adamw(Stream& stream, View<float> param, View<const float> grad, View<float> m, View<float> v,
           const AdamWStep& step);
/// Also writes the parameter's bf16 copy.
void adamw(Stream& stream, View<float> param, View<const float> grad, View<float> m, View<float> v,
           View<bf16> copy, const AdamWStep& step);

/// SGD with momentum; the weight decay is an L2 term added to the gradient.
struct SgdStep {
  double lr = 1e-3;
  double momentum = 0;
  double dampening = 0;
  double weight_decay = 0;
  bool nesterov = false;
  std::int64_t step = 1;  // from 1: the first step sets the buffer to the gradient
  double grad_scale = 1;
};

/// `momentum` may be a view without dimensions where step.momentum is 0.
void sgd(Stream& stream, View<float> param, View<const float> grad, View<float> momentum,
         const SgdStep& step);
void sgd(Stream& stream, View<float> param, View<const float> grad, View<float> momentum, View<bf16> copy,
         const SgdStep& step);

}  // namespace ridge::kernels
