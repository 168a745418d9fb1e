#include "kernels/device/philox.cuh"
#include "kernels/device/strided.cuh"
#include "kernels/fill.h"

namespace ridge::kernels::cuda {
namespace {

using device::kPhiloxWords;
using device::Loops;
using device::PhiloxWords;

template <class T>
struct Constant {
  T value;
  __device__ __forceinline__ void operator()(T& y) const { y = value; }
};

struct Draws {
  float at[kPhiloxWords];
};

struct Uniform {
  __device__ __forceinline__ Draws operator()(const PhiloxWords& words) const {
    Draws draws;
#pragma unroll
    for (int k = 0; k < kPhiloxWords; ++k) draws.at[k] = device::uniform_01(words.at[k]);
    return draws;
  }
};

/// Box and Muller: words (0, 1) and (2, 3) make a pair each, radius from the first, angle from the second.
struct Normal {
  __device__ __forceinline__ Draws operator()(const PhiloxWords& words) const {
    Draws draws;
#pragma unroll
    for (int k = 0; k < kPhiloxWords; k += 2) {
      const float u = static_cast<float>(words.at[k]) * 0x1p-32f + 0x1p-33f;  // in (0, 1]
      const float radius = sqrtf(-2.0f * logf(u));
      float sine, cosine;
      sincospif(2.0f * device::uniform_01(words.at[k + 1]), &sine, &cosine);
      draws.at[k] = radius * cosine;
      draws.at[k + 1] = radius * sine;
    }
    return draws;
  }
};

/// One counter a thread: y[i] = T(offset + factor * draw(first + i)). `vectors`: y is dense and aligned, and
/// `first` begins a counter.
template <class T, class Draw>
__global__ void __launch_bounds__(device::kThreads)
    random_kernel(const __grid_constant__ Loops<1> loops, T* y, acc_t<T> offset, acc_t<T> factor,
                  RandomKey key, std::uint64_t first, bool vectors, Draw draw) {
  const std::uint64_t counter =
      first / kPhiloxWords + std::uint64_t{blockIdx.x} * device::kThreads + threadIdx.x;
  const auto begin = static_cast<std::int64_t>(counter * kPhiloxWords - first);  // -3 at the least
  if (begin >= loops.count) return;
  const Draws draws = draw(device::philox(key, counter));
  device::Vec<T, kPhiloxWords> values;
#pragma unroll
  for (int k = 0; k < kPhiloxWords; ++k)
    values.at[k] = device::round_to<T>(fma(factor, static_cast<acc_t<T>>(draws.at[k]), offset));
  if (vectors && begin + kPhiloxWords <= loops.count) return device::store_vec(y + begin, values);
#pragma unroll
  for (int k = 0; k < kPhiloxWords; ++k) {
    if (begin + k >= 0 && begin + k < loops.count) y[loops.offset(begin + k)] = values.at[k];
  }
}

template <class T, class Draw>
void random_fill(Stream& stream, View<T> y, double offset, double factor, RandomKey key, std::uint64_t first,
                 Draw draw) {
  const Loops<1> loops(y.shape, {y.strides});
  if (loops.count == 0) return;
  const auto skipped = static_cast<std::int64_t>(first % kPhiloxWords);
  const bool vectors =
      loops.ndim == 1 && loops.step(0) == 1 && skipped == 0 && device::aligned_rows(y.data, 0, kPhiloxWords);
  const std::int64_t counters = device::ceil_div(skipped + loops.count, kPhiloxWords);
  random_kernel<<<device::grid_for(counters, device::kThreads), device::kThreads, 0,
                  device::native(stream)>>>(loops, y.data, static_cast<acc_t<T>>(offset),
                                            static_cast<acc_t<T>>(factor), key, first, vectors, draw);
}

}  // namespace

template <class T>
void fill(Stream& stream, View<T> y, double value) {
  device::map(stream, Constant<T>{T(static_cast<acc_t<T>>(value))}, y);
}

template <class T>
void uniform(Stream& stream, View<T> y, double lo, double hi, RandomKey key, std::uint64_t first) {
  random_fill(stream, y, lo, hi - lo, key, first, Uniform{});
}

template <class T>
void normal(Stream& stream, View<T> y, double mean, double std, RandomKey key, std::uint64_t first) {
  random_fill(stream, y, mean, std, key, first, Normal{});
}

template void fill<float>(Stream&, View<float>, double);
template void uniform<float>(Stream&, View<float>, double, double, RandomKey, std::uint64_t);
template void normal<float>(Stream&, View<float>, double, double, RandomKey, std::uint64_t);

template void fill<double>(Stream&, View<double>, double);
template void uniform<double>(Stream&, View<double>, double, double, RandomKey, std::uint64_t);
template void normal<double>(Stream&, View<double>, double, double, RandomKey, std::uint64_t);

template void fill<bf16>(Stream&, View<bf16>, double);
template void uniform<bf16>(Stream&, View<bf16>, double, double, RandomKey, std::uint64_t);
template void normal<bf16>(Stream&, View<bf16>, double, double, RandomKey, std::uint64_t);

}  // namespace ridge::kernels::cuda
