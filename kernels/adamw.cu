#include "kernels/adamw.h"

#include "kernels/device/optimizer_step.cuh"
#include "kernels/device/philox.cuh"

namespace ridge::kernels::cuda {
namespace {

using device::blocks_for, device::kQuad, device::kQuads, device::kThreads, device::native, device::Place;
using device::place_of, device::PlainQuad, device::Quad, device::quads_aligned, device::SplitQuad;

/// store_noisy of adamw.cpp: the bits of a bf16.
__device__ __forceinline__ unsigned round_noisy(float value, unsigned noise) {
  const unsigned u = __float_as_uint(value);
  return value != value ? (u >> 16) | 0x40u : (u + noise) >> 16;
}

/// New moments as they are kept.
template <class M>
__device__ __forceinline__ void set_moments(Quad<M>& m, Quad<M>& v, const float (&first)[kQuad],
                                            const float (&second)[kQuad], RandomKey key, std::int64_t quad) {
  if constexpr (std::is_same_v<M, bf16>) {
    const device::PhiloxWords words = device::philox(key, static_cast<std::uint64_t>(quad));
    unsigned low[kQuad], high[kQuad];
#pragma unroll
    for (int k = 0; k < kQuad; ++k) {
      low[k] = round_noisy(first[k], words.at[k] & 0xFFFFu);
      high[k] = round_noisy(second[k], words.at[k] >> 16);
    }
    m = Quad<bf16>::of_bits(low);
    v = Quad<bf16>::of_bits(high);
  } else {
    m = Quad<float>::of(first);
    v = Quad<float>::of(second);
  }
}

template <class Parameter, class M>
struct Operands {
  typename Parameter::Address param;
  const float* grad;
  M *m, *v;
  std::int64_t elements;
  AdamWFactors factors;
  GradientFactor gradient;
  RandomKey key;
  std::int64_t first_quad;
  bool aligned;
};

/// Four elements of everything.
template <bool kFull, class Parameter, class M>
struct Held {
  Parameter p;
  Quad<float> g;
  Quad<M> m, v;

  __device__ __forceinline__ void load_from(const Operands<Parameter, M>& o, int q) {
    const Place at = place_of(q, o.elements);
    p.template load_from<kFull>(o.param, at.begin, at.count);
    g.template load_from<kFull>(o.grad + at.begin, at.count);
    m.template load_from<kFull>(o.m + at.begin, at.count);
    v.template load_from<kFull>(o.v + at.begin, at.count);
  }
  __device__ __forceinline__ void update(const Operands<Parameter, M>& o, int q, float scale) {
    const Place at = place_of(q, o.elements);
    const AdamWFactors& f = o.factors;
    float updated[kQuad], first[kQuad], second[kQuad];
#pragma unroll
    for (int k = 0; k < kQuad; ++k) {
      const float gradient = g[k] * scale, before = m[k];
      first[k] = before + f.blend_m * (gradient - before);
      second[k] = v[k] * f.keep_v + f.blend_v * gradient * gradient;
      const float denominator = device::square_root(second[k]) * f.root_factor + f.eps;
      updated[k] = p[k] * f.decay - device::quotient(f.step_size * first[k], denominator);
    }
    p.set(updated);
    set_moments(m, v, first, second, o.key, o.first_quad + at.begin / kQuad);
    p.template store_to<kFull>(o.param, at.begin, at.count);
    m.template store_to<kFull>(o.m + at.begin, at.count);
    v.template store_to<kFull>(o.v + at.begin, at.count);
  }
};

/// Everything is on its way before the first of it, and the gradient's factor, is waited for.
template <class Parameter, class M>
__global__ void __launch_bounds__(kThreads) adamw_kernel(Operands<Parameter, M> o) {
  __shared__ float shared;
  device::update_quads<Held<true, Parameter, M>, Held<false, Parameter, M>>(o, &shared);
}

template <bool kFull>
__device__ __forceinline__ void split_quads(const float* master, SplitQuad::Address to,
                                            std::int64_t elements) {
#pragma unroll
  for (int q = 0; q < kQuads; ++q) {
    const Place at = place_of(q, elements);
    Quad<float> x;
    x.load_from<kFull>(master + at.begin, at.count);
    SplitQuad p;
    p.set({x[0], x[1], x[2], x[3]});
    p.store_to<kFull>(to, at.begin, at.count);
  }
}
__global__ void __launch_bounds__(kThreads)
    split_kernel(const float* master, SplitQuad::Address to, std::int64_t elements, bool aligned) {
  device::block_full(aligned, elements) ? split_quads<true>(master, to, elements)
                                        : split_quads<false>(master, to, elements);
}

template <bool kFull>
__device__ __forceinline__ void join_quads(const bf16* value, const std::int16_t* low, float* master,
                                           std::int64_t elements) {
#pragma unroll
  for (int q = 0; q < kQuads; ++q) {
    const Place at = place_of(q, elements);
    SplitQuad p;
    p.value.load_from<kFull>(value + at.begin, at.count);
    p.low.load_from<kFull>(low + at.begin, at.count);
    Quad<float>::of({p[0], p[1], p[2], p[3]}).store_to<kFull>(master + at.begin, at.count);
  }
}
__global__ void __launch_bounds__(kThreads) join_kernel(const bf16* value, const std::int16_t* low,
                                                        float* master, std::int64_t elements, bool aligned) {
  device::block_full(aligned, elements) ? join_quads<true>(value, low, master, elements)
                                        : join_quads<false>(value, low, master, elements);
}

template <class Parameter, class M>
void run(Stream& stream, typename Parameter::Address param, bool aligned, View<const float> grad, View<M> m,
         View<M> v, const AdamWStep& s) {
  const Operands<Parameter, M> o{param,
                                 grad.data,
                                 m.data,
                                 v.data,
                                 grad.numel(),
                                 AdamWFactors(s),
                                 {s.norm, s.clip, s.grad_scale},
                                 {static_cast<std::uint64_t>(s.step), s.parameter},
                                 s.first / kQuad,
                                 aligned && quads_aligned(grad.data, m.data, v.data)};
  adamw_kernel<Parameter, M><<<blocks_for(o.elements), kThreads, 0, native(stream)>>>(o);
}

}  // namespace

template <class M>
void adamw(Stream& stream, View<float> param, View<bf16> value, View<std::int16_t> low,
           View<const float> grad, View<M> m, View<M> v, const AdamWStep& step) {
  if (grad.numel() == 0) return;
  if (param.data != nullptr) {
    run<PlainQuad>(stream, {param.data}, quads_aligned(param.data), grad, m, v, step);
  } else {
    run<SplitQuad>(stream, {value.data, low.data}, quads_aligned(value.data, low.data), grad, m, v, step);
  }
}

void split_master(Stream& stream, View<const float> master, View<bf16> value, View<std::int16_t> low) {
  const std::int64_t n = master.numel();
  if (n == 0) return;
  const bool aligned = quads_aligned(master.data, value.data, low.data);
  split_kernel<<<blocks_for(n), kThreads, 0, native(stream)>>>(master.data, {value.data, low.data}, n,
                                                               aligned);
}

void join_master(Stream& stream, View<const bf16> value, View<const std::int16_t> low, View<float> master) {
  const std::int64_t n = master.numel();
  if (n == 0) return;
  const bool aligned = quads_aligned(master.data, value.data, low.data);
  join_kernel<<<blocks_for(n), kThreads, 0, native(stream)>>>(value.data, low.data, master.data, n, aligned);
}

template void adamw<float>(Stream&, View<float>, View<bf16>, View<std::int16_t>, View<const float>,
                           View<float>, View<float>, const AdamWStep&);
template void adamw<bf16>(Stream&, View<float>, View<bf16>, View<std::int16_t>, View<const float>, View<bf16>,
                          View<bf16>, const AdamWStep&);

}  // namespace ridge::kernels::cuda
