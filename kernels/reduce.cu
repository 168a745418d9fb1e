#include "kernels/reduce.h"

#include <algorithm>
#include <limits>

#include "core/base/cuda.h"
#include "core/base/memory.h"
#include "kernels/device/block.cuh"
#include "kernels/device/strided.cuh"

namespace ridge::kernels::cuda {
namespace {

using device::FastLoops;
using device::kThreads;
using device::kWarp;
using device::Loops;

/// All dimensions but the last.
template <class T>
Loops<1> outer_loops(const View<T>& view) {
  Loops<1> loops;
  for (int d = 0; d + 1 < view.ndim(); ++d) loops.push(view.shape[d], std::array{view.strides[d]});
  loops.close();
  return loops;
}

/// Rows of any strides, each `length` elements that lie `step` apart.
template <class T>
struct Rows {
  const T* x;
  FastLoops<1> loops;
  std::int64_t length, step;

  explicit Rows(View<const T> view)
      : x(view.data), loops(outer_loops(view)), length(view.shape[-1]), step(view.strides[-1]) {}
  bool in_vectors() const {
    constexpr int kN = device::kVec<T>;
    bool fits = step == 1 && length % kN == 0 && device::aligned_rows(x, 0);
    for (int d = 0; d < loops.ndim; ++d) fits = fits && (loops.count == 1 || loops.stride[d][0] % kN == 0);
    return fits;
  }
  /// Threads of a block that takes one row.
  unsigned threads(int n) const {
    constexpr std::int64_t kEach = 4;  // vectors of a thread, where the row has them
    const std::int64_t wanted = device::ceil_div(length, kEach * n * kWarp) * kWarp;
    return static_cast<unsigned>(std::clamp<std::int64_t>(wanted, kWarp, 1024));
  }
};

/// Calls `body(element, index)` for this thread's elements of the row.
template <int N, class T, class Body>
__device__ __forceinline__ void each_of_row(const Rows<T>& rows, std::int64_t row, const Body& body) {
  const T* x = rows.x + rows.loops.offset(row);
#pragma unroll 4
  for (std::int64_t i = std::int64_t{threadIdx.x} * N; i < rows.length; i += std::int64_t{blockDim.x} * N) {
    const auto values = device::load_held<N>(x + (N == 1 ? i * rows.step : i));
#pragma unroll
    for (int c = 0; c < N; ++c) body(values[c], i + c);
  }
}

struct MaxOrNan {
  template <class A>
  __device__ __forceinline__ A operator()(A a, A b) const {
    return a > b || a != a ? a : b;
  }
};

template <class T, int N>
__global__ void __launch_bounds__(1024)
    max_kernel(const __grid_constant__ Rows<T> rows, const __grid_constant__ FastLoops<1> out, T* y) {
  using A = acc_t<T>;
  __shared__ A shared[33];
  constexpr A kLeast = -std::numeric_limits<A>::infinity();
  A top = kLeast;
  each_of_row<N>(rows, blockIdx.x, [&](A value, std::int64_t) { top = MaxOrNan()(top, value); });
  top = device::block_all<MaxOrNan>(top, shared, kLeast);
  if (threadIdx.x == 0) y[out.offset(blockIdx.x)] = device::round_to<T>(top);
}

/// The greatest value so far and its index: NaN is greater than all else, of equals the first counts.
template <class A>
struct Best {
  A value;
  std::int64_t index;

  __device__ __forceinline__ void join(A other, std::int64_t at) {
    const bool nan = value != value, other_nan = other != other;
    const bool equal = nan ? other_nan : other == value;
    const bool greater = nan ? false : other_nan || other > value;
    if (greater || (equal && at < index)) {
      value = other;
      index = at;
    }
  }
  __device__ __forceinline__ void join_warp() {
#pragma unroll
    for (int step = kWarp / 2; step > 0; step /= 2) {
      const A other = __shfl_xor_sync(0xFFFFFFFFu, value, step);
      join(other, __shfl_xor_sync(0xFFFFFFFFu, index, step));
    }
  }
};

template <class T, int N>
__global__ void __launch_bounds__(1024)
    argmax_kernel(const __grid_constant__ Rows<T> rows, std::int32_t* index_R, std::int64_t index_step) {
  using A = acc_t<T>;
  __shared__ A values[kWarp];
  __shared__ std::int64_t indices[kWarp];
  const Best<A> none{-std::numeric_limits<A>::infinity(), std::numeric_limits<std::int64_t>::max()};
  Best<A> best = none;
  each_of_row<N>(rows, blockIdx.x, [&](A value, std::int64_t i) { best.join(value, i); });
  best.join_warp();
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  if (lane == 0) {
    values[warp] = best.value;
    indices[warp] = best.index;
  }
  __syncthreads();
  if (warp > 0) return;
  best = none;
  if (lane < static_cast<int>(blockDim.x) / kWarp) best = {values[lane], indices[lane]};
  best.join_warp();
  if (lane == 0) index_R[blockIdx.x * index_step] = static_cast<std::int32_t>(best.index);
}

constexpr int kBatch = 8;  // loads in flight of a thread
constexpr std::int64_t kMostBlocks = 1024;

/// All elements of a view in any order of blocks; `dense`: in vectors of N but for what is left at the end.
template <class T>
struct Elements {
  const T* x;
  FastLoops<1> loops;
  bool dense;

  explicit Elements(View<const T> view) : Elements(view, Loops<1>(view.shape, {view.strides})) {}
  Elements(View<const T> view, const Loops<1>& all)
      : x(view.data),
        loops(all),
        dense(all.ndim == 1 && all.step(0) == 1 && device::aligned_rows(view.data, 0)) {}
  unsigned blocks() const {
    const int n = dense ? device::kVec<T> : 1;
    return device::grid_for(loops.count, std::int64_t{kBatch} * kThreads * n, kMostBlocks);
  }
};

/// Calls `body(element, row-major index)` for this thread's elements, an eighth of a batch apart.
template <int N, class T, class Body>
__device__ __forceinline__ void each_in_batches(const Elements<T>& elements, const Body& body) {
  const std::int64_t units = elements.loops.count / N, batch = std::int64_t{kBatch} * kThreads;
  for (std::int64_t first = blockIdx.x * batch + threadIdx.x; first < units; first += gridDim.x * batch) {
    device::Held<T, N> values[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const std::int64_t unit = first + i * kThreads;
      values[i] = {};
      if (unit >= units) continue;
      values[i] = device::load_held<N>(elements.x + (N > 1 ? unit * N : elements.loops.offset(unit)));
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
#pragma unroll
      for (int c = 0; c < N; ++c) body(values[i][c], (first + i * kThreads) * N + c);
    }
  }
  const std::int64_t left = units * N + threadIdx.x;
  if (N > 1 && blockIdx.x == 0 && left < elements.loops.count) body(device::load(elements.x[left]), left);
}

template <class T, int N>
__global__ void __launch_bounds__(kThreads)
    squares_kernel(const __grid_constant__ Elements<T> elements, double* partial_P) {
  __shared__ double shared[33];
  double sum[4] = {};
  each_in_batches<N>(elements, [&](acc_t<T> value, std::int64_t) {
    const double v = value;
    sum[3] = fma(v, v, sum[3]);
    const double next = sum[0];  // four chains take turns
    sum[0] = sum[1], sum[1] = sum[2], sum[2] = sum[3], sum[3] = next;
  });
  const double total = (sum[0] + sum[1]) + (sum[2] + sum[3]);
  const double all = device::block_all<device::Sum>(total, shared, 0.0);
  if (threadIdx.x == 0) partial_P[blockIdx.x] = all;
}

__global__ void __launch_bounds__(kThreads)
    add_partials_kernel(const double* partial_P, int parts, double* sum) {
  __shared__ double shared[33];
  double mine = 0;
  for (int p = static_cast<int>(threadIdx.x); p < parts; p += kThreads) mine += partial_P[p];
  const double all = device::block_all<device::Sum>(mine, shared, 0.0);
  if (threadIdx.x == 0) *sum += all;
}

template <class T, int N>
__global__ void __launch_bounds__(kThreads)
    non_finite_kernel(const __grid_constant__ Elements<T> elements, unsigned long long* first) {
  unsigned long long found = ~0ull;
  each_in_batches<N>(elements, [&](acc_t<T> value, std::int64_t index) {
    if (!::isfinite(value)) found = min(found, static_cast<unsigned long long>(index));
  });
  if (found != ~0ull) atomicMin(first, found);
}

}  // namespace

template <class T>
void max_last(Stream& stream, View<const T> x, View<T> y) {
  if (y.numel() == 0) return;
  constexpr int kN = device::kVec<T>;
  const Rows<T> rows(x);
  const FastLoops<1> out(outer_loops(y));
  const unsigned blocks = device::grid_for(rows.loops.count, 1);
  const cudaStream_t queue = device::native(stream);
  if (rows.in_vectors()) {
    max_kernel<T, kN><<<blocks, rows.threads(kN), 0, queue>>>(rows, out, y.data);
  } else {
    max_kernel<T, 1><<<blocks, rows.threads(1), 0, queue>>>(rows, out, y.data);
  }
}

template <class T>
void argmax_last(Stream& stream, View<const T> x_RC, View<std::int32_t> index_R) {
  if (index_R.numel() == 0) return;
  constexpr int kN = device::kVec<T>;
  const Rows<T> rows(x_RC);
  const unsigned blocks = device::grid_for(rows.loops.count, 1);
  const cudaStream_t queue = device::native(stream);
  const std::int64_t step = index_R.strides[0];
  if (rows.in_vectors()) {
    argmax_kernel<T, kN><<<blocks, rows.threads(kN), 0, queue>>>(rows, index_R.data, step);
  } else {
    argmax_kernel<T, 1><<<blocks, rows.threads(1), 0, queue>>>(rows, index_R.data, step);
  }
}

template <class T>
void add_sum_of_squares(Stream& stream, View<const T> x, View<double> sum) {
  if (x.numel() == 0) return;
  const Elements<T> elements(x);
  const unsigned blocks = elements.blocks();
  const PurposeScope purpose(Purpose::workspace);
  const Storage scratch(Device::cuda, blocks * std::int64_t{sizeof(double)});
  auto* partial_P = static_cast<double*>(scratch.data());
  const cudaStream_t queue = device::native(stream);
  if (elements.dense) {
    squares_kernel<T, device::kVec<T>><<<blocks, kThreads, 0, queue>>>(elements, partial_P);
  } else {
    squares_kernel<T, 1><<<blocks, kThreads, 0, queue>>>(elements, partial_P);
  }
  add_partials_kernel<<<1, kThreads, 0, queue>>>(partial_P, static_cast<int>(blocks), sum.data);
}

template <class T>
std::int64_t first_non_finite(Stream& stream, View<const T> x) {
  if (x.numel() == 0) return -1;
  const Elements<T> elements(x);
  const PurposeScope purpose(Purpose::workspace);
  const Storage scratch(Device::cuda, sizeof(unsigned long long));
  auto* first = static_cast<unsigned long long*>(scratch.data());
  ridge::cuda::fill_bytes(first, 0xFF, sizeof(*first), stream);
  const cudaStream_t queue = device::native(stream);
  if (elements.dense) {
    non_finite_kernel<T, device::kVec<T>><<<elements.blocks(), kThreads, 0, queue>>>(elements, first);
  } else {
    non_finite_kernel<T, 1><<<elements.blocks(), kThreads, 0, queue>>>(elements, first);
  }
  unsigned long long found = 0;
  ridge::cuda::copy(&found, first, sizeof(found), stream);
  ridge::cuda::synchronize(stream);
  return static_cast<std::int64_t>(found);
}

template void max_last<float>(Stream&, View<const float>, View<float>);
template void argmax_last<float>(Stream&, View<const float>, View<std::int32_t>);
template void add_sum_of_squares<float>(Stream&, View<const float>, View<double>);
template std::int64_t first_non_finite<float>(Stream&, View<const float>);

template void max_last<double>(Stream&, View<const double>, View<double>);
template void argmax_last<double>(Stream&, View<const double>, View<std::int32_t>);
template void add_sum_of_squares<double>(Stream&, View<const double>, View<double>);
template std::int64_t first_non_finite<double>(Stream&, View<const double>);

template void max_last<bf16>(Stream&, View<const bf16>, View<bf16>);
template void argmax_last<bf16>(Stream&, View<const bf16>, View<std::int32_t>);
template void add_sum_of_squares<bf16>(Stream&, View<const bf16>, View<double>);
template std::int64_t first_non_finite<bf16>(Stream&, View<const bf16>);

}  // namespace ridge::kernels::cuda
