#include <algorithm>

#include "kernels/device/launch.cuh"
#include "kernels/device/vec.cuh"
#include "kernels/sum_parts.h"

namespace ridge::kernels::cuda {
namespace {

using device::kThreads;

// Elements a thread: 16 bytes of the wider of a part and the sum.
template <class T, class Y>
constexpr int kLanes = static_cast<int>(16 / std::max(sizeof(T), sizeof(Y)));
constexpr int kInFlight = 4;  // parts that are read at once

template <class T>
struct Parts {
  const T* at[kMostParts];  // [N] each
  int count;
};

/// y[i] = or += the parts' sum, vectors of N elements; `n` vectors. y may be a part: no restrict.
template <class T, class Y, int N>
__global__ void __launch_bounds__(kThreads)
    sum_parts_kernel(const __grid_constant__ Parts<T> parts, std::int64_t n, Y* y, bool adds) {
  const std::int64_t i = (std::int64_t{blockIdx.x} * kThreads + threadIdx.x) * N;
  if (i >= n * N) return;
  acc_t<T> sum[N];
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
        const acc_t<T> value = device::load(read[p].at[k]);
        sum[k] = first + p == 0 ? value : sum[k] + value;
      }
    }
  }
  device::Vec<Y, N> out;
  if (adds) out = device::load_vec<Y, N>(y + i);
#pragma unroll
  for (int k = 0; k < N; ++k)
    out.at[k] = device::round_to<Y>(adds ? device::load(out.at[k]) + sum[k] : sum[k]);
  device::store_vec(y + i, out);
}

template <class T, class Y, int N>
void run(Stream& stream, const Parts<T>& parts, std::int64_t n, Y* y, bool adds) {
  const unsigned grid = device::grid_for(n, kThreads);
  sum_parts_kernel<T, Y, N><<<grid, kThreads, 0, device::native(stream)>>>(parts, n, y, adds);
}

}  // namespace

template <class T, class Y>
void sum_parts(Stream& stream, std::span<const View<const T>> parts, View<Y> y, bool adds) {
  constexpr int kVectors = kLanes<T, Y>;
  Parts<T> list{};
  list.count = static_cast<int>(parts.size());
  std::int64_t n = y.numel();
  if (n == 0) return;
  bool vectors = n % kVectors == 0 && device::aligned_rows(y.data, 0, kVectors);
  for (std::size_t p = 0; p < parts.size(); ++p) {
    list.at[p] = parts[p].data;
    vectors = vectors && device::aligned_rows(parts[p].data, 0, kVectors);
  }
  if (vectors) return run<T, Y, kVectors>(stream, list, n / kVectors, y.data, adds);
  run<T, Y, 1>(stream, list, n, y.data, adds);
}

template void sum_parts<float, float>(Stream&, std::span<const View<const float>>, View<float>, bool);
template void sum_parts<double, double>(Stream&, std::span<const View<const double>>, View<double>, bool);
template void sum_parts<bf16, float>(Stream&, std::span<const View<const bf16>>, View<float>, bool);
template void sum_parts<bf16, bf16>(Stream&, std::span<const View<const bf16>>, View<bf16>, bool);

}  // namespace ridge::kernels::cuda
