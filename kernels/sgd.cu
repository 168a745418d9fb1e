#include "kernels/sgd.h"

#include "kernels/device/optimizer_step.cuh"

namespace ridge::kernels::cuda {
namespace {

using device::kQuad, device::kQuads, device::kThreads, device::Place, device::place_of, device::PlainQuad;
using device::Quad, device::quads_aligned, device::SplitQuad;

template <class Parameter>
struct Operands {
  typename Parameter::Address param;
  const float* grad;
  float* momentum;
  std::int64_t elements;
  SgdFactors factors;
  GradientFactor gradient;
  bool aligned;
};

/// Four elements of everything.
template <bool kFull, bool kMomentum, class Parameter>
struct Held {
  Parameter p;
  Quad<float> g, buffer;

  __device__ __forceinline__ void load_from(const Operands<Parameter>& o, int q) {
    const Place at = place_of(q, o.elements);
    p.template load_from<kFull>(o.param, at.begin, at.count);
    g.template load_from<kFull>(o.grad + at.begin, at.count);
    if (kMomentum && !o.factors.first) buffer.template load_from<kFull>(o.momentum + at.begin, at.count);
  }
  __device__ __forceinline__ void update(const Operands<Parameter>& o, int q, float scale) {
    const Place at = place_of(q, o.elements);
    const SgdFactors& f = o.factors;
    float updated[kQuad], kept[kQuad];
#pragma unroll
    for (int k = 0; k < kQuad; ++k) {
      const float gradient = g[k] * scale + f.weight_decay * p[k];
      kept[k] = f.first ? gradient : buffer[k] * f.momentum + f.blend * gradient;
      const float direction = f.nesterov ? gradient + f.momentum * kept[k] : kept[k];
      updated[k] = p[k] - f.lr * (kMomentum ? direction : gradient);
    }
    p.set(updated);
    p.template store_to<kFull>(o.param, at.begin, at.count);
    if constexpr (kMomentum) Quad<float>::of(kept).template store_to<kFull>(o.momentum + at.begin, at.count);
  }
};

template <class Parameter, bool kMomentum>
__global__ void __launch_bounds__(kThreads) sgd_kernel(Operands<Parameter> o) {
  __shared__ float shared;
  device::update_quads<Held<true, kMomentum, Parameter>, Held<false, kMomentum, Parameter>>(o, &shared);
}

template <class Parameter>
void run(Stream& stream, typename Parameter::Address param, bool aligned, View<const float> grad,
         View<float> momentum, const SgdStep& s) {
  const bool moves = s.momentum != 0;
  const Operands<Parameter> o{
      param,
      grad.data,
      momentum.data,
      grad.numel(),
      SgdFactors(s),
      {s.norm, s.clip, s.grad_scale},
      aligned && quads_aligned(grad.data) && (!moves || quads_aligned(momentum.data))};
  const auto kernel = moves ? sgd_kernel<Parameter, true> : sgd_kernel<Parameter, false>;
  kernel<<<device::blocks_for(o.elements), kThreads, 0, device::native(stream)>>>(o);
}

}  // namespace

void sgd(Stream& stream, View<float> param, View<bf16> value, View<std::int16_t> low, View<const float> grad,
         View<float> momentum, const SgdStep& step) {
  if (grad.numel() == 0) return;
  if (param.data != nullptr) {
    run<PlainQuad>(stream, {param.data}, quads_aligned(param.data), grad, momentum, step);
  } else {
    run<SplitQuad>(stream, {value.data, low.data}, quads_aligned(value.data, low.data), grad, momentum, step);
  }
}

}  // namespace ridge::kernels::cuda
