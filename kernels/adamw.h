// AdamW's update of one parameter, in place, with PyTorch's semantics and order of operations, and the f32
// master that a bf16 parameter is trained as. Views are contiguous, of any one shape.
#pragma once

#include <cstdint>

#include "core/base/dtype.h"
#include "core/base/stream.h"
#include "core/base/view.h"
#include "kernels/sgd.h"

namespace ridge::kernels {

/// AdamW (Loshchilov and Hutter, 2019); the decay is decoupled.
struct AdamWStep {
  double lr = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0.01;
  std::int64_t step = 1;         // from 1
  double grad_scale = 1;         // the gradient is multiplied by this first: averaging, loss scaling
  const double* norm = nullptr;  // on the stream's device: 2-norm of all gradients; one that is not finite:
                                 // nothing is changed
  double clip = 0;               // with a norm, above 0: the gradient is also multiplied by
                                 // min(1, clip / (norm + 1e-6))
  std::uint64_t parameter = 0;   // names the parameter: stream of the noise that rounds bf16 moments
  std::int64_t first = 0;        // place of element 0 in that parameter, a multiple of 4: for a shard of it
};

/// m and v start as zeros before step 1. M is float, or bf16: rounded stochastically, so that the expectation
/// is exact, with 16 bits each of philox({step, parameter}, (first + element) / 4).
template <class M>
void adamw(Stream& stream, View<float> param, View<const float> grad, View<M> m, View<M> v,
           const AdamWStep& step);
/// Updates the f32 master that `param` and `low` hold (split_master).
template <class M>
void adamw(Stream& stream, View<bf16> param, View<std::int16_t> low, View<const float> grad, View<M> m,
           View<M> v, const AdamWStep& step);

/// value = the bf16 nearest to master, low = what is left: bits(master) = (bits(value) << 16) + low. Of a tie
/// that rounds down, low = 0x8000 does not fit: 0x7FFF is kept, off by an ulp of f32.
void split_master(Stream& stream, View<const float> master, View<bf16> value, View<std::int16_t> low);
void join_master(Stream& stream, View<const bf16> value, View<const std::int16_t> low, View<float> master);

/// What `launch` runs on a GPU; arguments are checked already (adamw.cu).
namespace cuda {
/// `param` without an address: value and low hold it.
template <class M>
void adamw(Stream& stream, View<float> param, View<bf16> value, View<std::int16_t> low,
           View<const float> grad, View<M> m, View<M> v, const AdamWStep& step);
void split_master(Stream& stream, View<const float> master, View<bf16> value, View<std::int16_t> low);
void join_master(Stream& stream, View<const bf16> value, View<const std::int16_t> low, View<float> master);
}  // namespace cuda

}  // namespace ridge::kernels
