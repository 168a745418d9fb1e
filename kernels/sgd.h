// SGD's update of one parameter, in place, with PyTorch's semantics and order of operations. Views are
// contiguous, of any one shape.
#pragma once

#include <cstdint>

#include "core/base/dtype.h"
#include "core/base/stream.h"
#include "core/base/view.h"

namespace ridge::kernels {

/// SGD with momentum; the weight decay is an L2 term added to the gradient.
struct SgdStep {
  double lr = 1e-3;
  double momentum = 0;
  double dampening = 0;
  double weight_decay = 0;
  bool nesterov = false;
  std::int64_t step = 1;         // from 1: the first step sets the buffer to the gradient
  double grad_scale = 1;         // as AdamWStep's
  const double* norm = nullptr;  // as AdamWStep's
  double clip = 0;               // as AdamWStep's
};

/// `momentum` may be a view without dimensions where step.momentum is 0.
void sgd(Stream& stream, View<float> param, View<const float> grad, View<float> momentum,
         const SgdStep& step);
/// Updates the f32 master that `param` and `low` hold (split_master of adamw.h).
void sgd(Stream& stream, View<bf16> param, View<std::int16_t> low, View<const float> grad,
         View<float> momentum, const SgdStep& step);

/// What `launch` runs on a GPU; arguments are checked already (sgd.cu).
namespace cuda {
/// `param` without an address: value and low hold it.
void sgd(Stream& stream, View<float> param, View<bf16> value, View<std::int16_t> low, View<const float> grad,
         View<float> momentum, const SgdStep& step);
}  // namespace cuda

}  // namespace ridge::kernels
