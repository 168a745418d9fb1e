#include "kernels/adamw.h"

#include <cmath>

#include "core/base/launch.h"
#include "core/base/threads.h"
#include "kernels/element.h"
#include "kernels/optimizer_step.h"
#include "kernels/philox_block.h"

namespace ridge::kernels {
namespace {

constexpr std::int64_t kElementsPerTask = 16384;

/// Rounds up with the probability that makes the expectation `value`; `noise` is uniform in [0, 2^16).
inline void store_noisy(bf16& slot, float value, std::uint32_t noise) {
  const auto u = std::bit_cast<std::uint32_t>(value);
  slot.bits = static_cast<std::uint16_t>(value != value ? (u >> 16) | 0x40u : (u + noise) >> 16);
}

/// `words` has a random word for each element where M is bf16.
template <class Parameter, class M>
void adamw_row(Parameter p, const float* grad, M* m, M* v, [[maybe_unused]] const std::uint32_t* words,
               AdamWFactors f, float grad_scale, std::int64_t n) {
#pragma omp simd
  for (std::int64_t i = 0; i < n; ++i) {
    const float g = grad[i] * grad_scale, m_before = load(m[i]);
    const float first = m_before + f.blend_m * (g - m_before);
    const float second = load(v[i]) * f.keep_v + f.blend_v * g * g;
    const float denominator = std::sqrt(second) * f.root_factor + f.eps;
    p.set(i, p.get(i) * f.decay - f.step_size * first / denominator);
    if constexpr (std::is_same_v<M, bf16>) {
      store_noisy(m[i], first, words[i] & 0xFFFFu);
      store_noisy(v[i], second, words[i] >> 16);
    } else {
      m[i] = first;
      v[i] = second;
    }
  }
}

template <class Parameter, class M>
void run_on_cpu(Parameter p, View<const float> grad, View<M> m, View<M> v, const AdamWStep& s) {
  const std::optional<float> scale = GradientFactor{s.norm, s.clip, s.grad_scale}.on_cpu();
  if (!scale.has_value()) return;
  const AdamWFactors factors(s);
  parallel_for(grad.numel(), kElementsPerTask, [&](std::int64_t begin, std::int64_t end) {
    const auto run = [&](std::int64_t at, const std::uint32_t* words, std::int64_t n) {
      adamw_row(p.from(at), grad.data + at, m.data + at, v.data + at, words, factors, *scale, n);
    };
    if constexpr (std::is_same_v<M, bf16>) {
      for_random_words({static_cast<std::uint64_t>(s.step), s.parameter}, static_cast<std::uint64_t>(s.first),
                       begin, end, run);
    } else {
      run(begin, nullptr, end - begin);
    }
  });
}

/// Bytes that move: state is read and written.
template <class M>
Work work_of(const View<const float>& grad, const View<M>& m, double param_bytes) {
  return {15 * static_cast<double>(grad.numel()), 2 * param_bytes + grad.bytes() + 4 * m.bytes()};
}

}  // namespace

template <class M>
void adamw(Stream& stream, View<float> param, View<const float> grad, View<M> m, View<M> v,
           const AdamWStep& step) {
  check_optimizer_operands(param, grad, m, v);
  check(step.step >= 1 && step.first >= 0 && step.first % 4 == 0, "adamw: steps from 1, shards from fours");
  launch(
      stream, "adamw", work_of(grad, m, param.bytes()),
      [&] { run_on_cpu(PlainParameter{param.data}, grad, m, v, step); },
      [&] { cuda::adamw<M>(stream, param, {}, {}, grad, m, v, step); });
}

template <class M>
void adamw(Stream& stream, View<bf16> param, View<std::int16_t> low, View<const float> grad, View<M> m,
           View<M> v, const AdamWStep& step) {
  check_optimizer_operands(param, low, grad, m, v);
  check(step.step >= 1 && step.first >= 0 && step.first % 4 == 0, "adamw: steps from 1, shards from fours");
  launch(
      stream, "adamw", work_of(grad, m, param.bytes() + low.bytes()),
      [&] {
        run_on_cpu(SplitParameter{param.data, low.data}, grad, m, v, step);
      },
      [&] { cuda::adamw<M>(stream, {}, param, low, grad, m, v, step); });
}

void split_master(Stream& stream, View<const float> master, View<bf16> value, View<std::int16_t> low) {
  check_optimizer_operands(master, value, low);
  const auto on_cpu = [&] {
    const SplitParameter parameter{value.data, low.data};
    parallel_for(master.numel(), kElementsPerTask, [&](std::int64_t begin, std::int64_t end) {
#pragma omp simd
      for (std::int64_t i = begin; i < end; ++i) parameter.set(i, master.data[i]);
    });
  };
  launch(stream, "split_master", Work{0, master.bytes() + value.bytes() + low.bytes()}, on_cpu,
         [&] { cuda::split_master(stream, master, value, low); });
}

void join_master(Stream& stream, View<const bf16> value, View<const std::int16_t> low, View<float> master) {
  check_optimizer_operands(master, value, low);
  const auto on_cpu = [&] {
    parallel_for(master.numel(), kElementsPerTask, [&](std::int64_t begin, std::int64_t end) {
#pragma omp simd
      for (std::int64_t i = begin; i < end; ++i) master.data[i] = joined(value.data[i], low.data[i]);
    });
  };
  launch(stream, "join_master", Work{0, master.bytes() + value.bytes() + low.bytes()}, on_cpu,
         [&] { cuda::join_master(stream, value, low, master); });
}

template void adamw<float>(Stream&, View<float>, View<const float>, View<float>, View<float>,
                           const AdamWStep&);
template void adamw<bf16>(Stream&, View<float>, View<const float>, View<bf16>, View<bf16>, const AdamWStep&);
template void adamw<float>(Stream&, View<bf16>, View<std::int16_t>, View<const float>, View<float>,
                           View<float>, const AdamWStep&);
template void adamw<bf16>(Stream&, View<bf16>, View<std::int16_t>, View<const float>, View<bf16>, View<bf16>,
                          const AdamWStep&);

}  // namespace ridge::kernels
