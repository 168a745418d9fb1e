#include <algorithm>

#include "kernels/device/launch.cuh"
#include "kernels/device/vec.cuh"
#include "kernels/sum_parts.h"

namespace ridge::kernels::cuda {
namespace {

using device::kThreads;

constexpr int kLanes = 4;     // elements a thread: 16 bytes of y
constexpr int kInFlight = 4;  // parts that are read at once

template <class T>
struct Parts {
  const T* at[kMostParts];  // [N] each
  int count;
};

/// y[i] = or += the parts' sum, vectors of N elements; `n` vectors. y may be a part: no restrict.
template <class T, int N>
__global__ void __launch_bounds__(kThreads)
    sum_parts_kernel(const __grid_constant__ Parts<T> parts, std::int64_t n, float* y, bool adds) {
  const std::int64_t i = (std::int64_t{blockIdx.x} * kThreads + threadIdx.x) * N;
  if (i >= n * N) return;
  float sum[N];
  for (int first = 0; first < parts.count; first += kInFlight) {
    device::Vec<T, N> read[kInFlight];
#pragma unroll
    for (int p = 0; p < kInFlight; ++p) {
      if (first + p < parts.count) read[p] = device::load_vec<T, N>(parts.at[first + p] + i);
    }
#pragma unroll
    for (int p = 0; p < kInFlight; ++p) {
      if (first + p >= parts.count) break;
#pragma unroll
      for (int k = 0; k < N; ++k) {
        const float value = device::load(read[p].at[k]);
        sum[k] = first + p == 0 ? value : sum[k] + value;
      }
    }
  }
  device::Vec<float, N> out;
  if (adds) out = device::load_vec<float, N>(y + i);
#pragma unroll
  for (int k = 0; k < N; ++k) out.at[k] = adds ? out.at[k] + sum[k] : sum[k];
  device::store_vec(y + i, out);
}

template <class T, int N>
void run(Stream& stream, const Parts<T>& parts, std::int64_t n, float* y, bool adds) {
  const unsigned grid = device::grid_for(n, kThreads);
  sum_parts_kernel<T, N><<<grid, kThreads, 0, device::native(stream)>>>(parts, n, y, adds);
}

}  // namespace

template <class T>
void sum_parts(Stream& stream, std::span<const View<const T>> parts, View<float> y, bool adds) {
  Parts<T> list{};
  list.count = static_cast<int>(parts.size());
  std::int64_t n = y.numel();
  if (n == 0) return;
  bool vectors = n % kLanes == 0 && device::aligned_rows(y.data, 0, kLanes);
  for (std::size_t p = 0; p < parts.size(); ++p) {
    list.at[p] = parts[p].data;
    vectors = vectors && device::aligned_rows(parts[p].data, 0, kLanes);
  }
  if (vectors) return run<T, kLanes>(stream, list, n / kLanes, y.data, adds);
  run<T, 1>(stream, list, n, y.data, adds);
}

template void sum_parts<float>(Stream&, std::span<const View<const float>>, View<float>, bool);
template void sum_parts<bf16>(Stream&, std::span<const View<const bf16>>, View<float>, bool);

}  // namespace ridge::kernels::cuda
