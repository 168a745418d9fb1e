#include "kernels/device/launch.cuh"
#include "kernels/device/philox.cuh"
#include "kernels/device/vec.cuh"
#include "kernels/dropout.h"

namespace ridge::kernels::cuda {
namespace {

using device::kPhiloxWords;

/// Elements of a thread: whole counters, 16 bytes at the least.
template <class T>
constexpr int kEach = device::kVec<T> > kPhiloxWords ? device::kVec<T> : kPhiloxWords;

template <class T>
__device__ __forceinline__ T masked(T x, std::uint32_t word, std::uint32_t threshold, acc_t<T> factor) {
  return device::round_to<T>((word >> 8) >= threshold ? device::load(x) * factor : acc_t<T>(0));
}

/// `vectors`: both sides are aligned, and `first` begins a counter.
template <class T>
__global__ void __launch_bounds__(device::kThreads)
    dropout_kernel(const T* x, std::uint32_t threshold, acc_t<T> factor, RandomKey key, std::uint64_t first,
                   bool vectors, T* y, std::int64_t n) {
  const std::uint64_t thread = std::uint64_t{blockIdx.x} * device::kThreads + threadIdx.x;
  const std::uint64_t counter = first / kPhiloxWords + thread * (kEach<T> / kPhiloxWords);
  const auto begin = static_cast<std::int64_t>(counter * kPhiloxWords - first);  // -3 at the least
  if (begin >= n) return;
  const bool whole = vectors && begin + kEach<T> <= n;
  device::Vec<T, kEach<T>> values;
  if (whole) values = device::load_vec<T, kEach<T>>(x + begin);
#pragma unroll
  for (int c = 0; c < kEach<T> / kPhiloxWords; ++c) {
    const device::PhiloxWords words = device::philox(key, counter + static_cast<std::uint64_t>(c));
#pragma unroll
    for (int k = 0; k < kPhiloxWords; ++k) {
      const int i = c * kPhiloxWords + k;
      if (whole) {
        values.at[i] = masked(values.at[i], words.at[k], threshold, factor);
      } else if (begin + i >= 0 && begin + i < n) {
        y[begin + i] = masked(x[begin + i], words.at[k], threshold, factor);
      }
    }
  }
  if (whole) device::store_vec(y + begin, values);
}

/// A thread's elements are one counter's where `counters` says that rows begin with one and end with one.
template <class T>
__global__ void __launch_bounds__(device::kThreads)
    dropout_rows_kernel(const T* x, std::uint32_t threshold, acc_t<T> factor, RandomKey key, MaskRows rows,
                        bool counters, T* y, std::int64_t n) {
  const std::int64_t begin = (std::int64_t{blockIdx.x} * device::kThreads + threadIdx.x) * kPhiloxWords;
  if (begin >= n) return;
  const auto word_of = [&](std::int64_t i) {
    return rows.first + static_cast<std::uint64_t>(i / rows.length * rows.step + i % rows.length);
  };
  device::PhiloxWords words;
  if (counters) words = device::philox(key, word_of(begin) / kPhiloxWords);
#pragma unroll
  for (int k = 0; k < kPhiloxWords; ++k) {
    const std::int64_t i = begin + k;
    if (i >= n) return;
    if (counters) {
      y[i] = masked(x[i], words.at[k], threshold, factor);
      continue;
    }
    const std::uint64_t word = word_of(i);
    const device::PhiloxWords own = device::philox(key, word / kPhiloxWords);
    std::uint32_t mine = own.at[0];
#pragma unroll
    for (int w = 1; w < kPhiloxWords; ++w) mine = word % kPhiloxWords == w ? own.at[w] : mine;
    y[i] = masked(x[i], mine, threshold, factor);
  }
}

template <class T>
void dropout_rows(Stream& stream, View<const T> x, std::uint32_t threshold, acc_t<T> factor, RandomKey key,
                  const MaskRows& rows, View<T> y) {
  const bool counters =
      rows.first % kPhiloxWords == 0 && rows.length % kPhiloxWords == 0 && rows.step % kPhiloxWords == 0;
  const std::int64_t n = x.numel();
  const unsigned blocks = device::grid_for(n, std::int64_t{device::kThreads} * kPhiloxWords);
  dropout_rows_kernel<<<blocks, device::kThreads, 0, device::native(stream)>>>(x.data, threshold, factor, key,
                                                                               rows, counters, y.data, n);
}

}  // namespace

template <class T>
void dropout(Stream& stream, View<const T> x, std::uint32_t threshold, acc_t<T> factor, RandomKey key,
             const MaskRows& rows, View<T> y) {
  const std::int64_t n = x.numel();
  if (n == 0) return;
  if (rows.length != rows.step) return dropout_rows(stream, x, threshold, factor, key, rows, y);
  const std::uint64_t first = rows.first;
  const auto skipped = static_cast<std::int64_t>(first % kPhiloxWords);
  const bool vectors =
      skipped == 0 && device::aligned_rows(x.data, 0, kEach<T>) && device::aligned_rows(y.data, 0, kEach<T>);
  const unsigned blocks = device::grid_for(skipped + n, std::int64_t{device::kThreads} * kEach<T>);
  dropout_kernel<<<blocks, device::kThreads, 0, device::native(stream)>>>(x.data, threshold, factor, key,
                                                                          first, vectors, y.data, n);
}

template void dropout<float>(Stream&, View<const float>, std::uint32_t, float, RandomKey, const MaskRows&,
                             View<float>);
template void dropout<double>(Stream&, View<const double>, std::uint32_t, double, RandomKey, const MaskRows&,
                              View<double>);
template void dropout<bf16>(Stream&, View<const bf16>, std::uint32_t, float, RandomKey, const MaskRows&,
                            View<bf16>);

}  // namespace ridge::kernels::cuda
