// K outputs, M summed elements of each, P parts that each output's sum is cut into by the shapes alone.
// Short chains in acc_t<T> are joined in f64, in a fixed order.
#include <algorithm>
#include <cstdlib>

#include "core/base/memory.h"
#include "kernels/device/block.cuh"
#include "kernels/device/strided.cuh"
#include "kernels/reduce.h"

namespace ridge::kernels::cuda {
namespace {

using device::FastLoops;
using device::kThreads;
using device::kWarp;
using device::Loops;

constexpr int kAlongBatch = 8;   // loads in flight of a thread
constexpr int kAcrossBatch = 4;  // the same, beside a sum for every column
constexpr int kGroups = kThreads / kWarp;
constexpr std::int64_t kBlocksWanted = 512;      // about four a multiprocessor of a large GPU
constexpr std::int64_t kMostPartials = 1 << 17;  // P * K: 1 MiB

/// Where sums go: the output, or for P > 1 partial sums [P, K].
template <class T>
struct Output {
  Loops<1> loops;
  T* y;
  double* partial_PK;
  double factor;

  __device__ __forceinline__ void finish(std::int64_t k, double sum) const {
    y[loops.offset(k)] = device::round_to<T>(static_cast<acc_t<T>>(sum * factor));
  }
  __device__ __forceinline__ void emit(std::int64_t k, std::int64_t part, double sum) const {
    if (partial_PK == nullptr) return finish(k, sum);
    partial_PK[part * loops.count + k] = sum;
  }
};

/// The sum of a vector's elements, as a tree.
template <class A, int N>
__device__ __forceinline__ A tree_sum(A (&value)[N]) {
#pragma unroll
  for (int width = N / 2; width > 0; width /= 2) {
#pragma unroll
    for (int c = 0; c < width; ++c) value[c] += value[c + width];
  }
  return value[0];
}

/// Summed elements lie next to each other: a team of threads takes one part of one output. Vectors of N.
template <class T, int N, int kTeam>
__global__ void __launch_bounds__(kThreads)
    along_kernel(const __grid_constant__ Loops<1> kept, const __grid_constant__ FastLoops<1> reduced,
                 const T* x, std::int64_t parts, const __grid_constant__ Output<T> out) {
  __shared__ double shared[33];
  const int lane = static_cast<int>(threadIdx.x) % kTeam;
  const std::int64_t task = std::int64_t{blockIdx.x} * (kThreads / kTeam) + threadIdx.x / kTeam;
  if (task >= kept.count * parts) return;  // whole warps; never with a team that is the block
  const std::int64_t k = task / parts, part = task % parts;
  const std::int64_t units = reduced.count, each = (units + parts - 1) / parts;
  const std::int64_t end = min(units, (part + 1) * each);
  const T* row = x + kept.offset(k);
  double total = 0;
  for (std::int64_t first = part * each + lane; first < end; first += kAlongBatch * kTeam) {
    device::Held<T, N> batch[kAlongBatch];
#pragma unroll
    for (int i = 0; i < kAlongBatch; ++i) {
      const std::int64_t unit = first + i * kTeam;
      batch[i] = {};
      if (unit < end) batch[i] = device::load_held<N>(row + reduced.offset(unit));
    }
    acc_t<T> sum[N] = {};
#pragma unroll
    for (int i = 0; i < kAlongBatch; ++i) {
#pragma unroll
      for (int c = 0; c < N; ++c) sum[c] += batch[i][c];
    }
    total += static_cast<double>(tree_sum(sum));
  }
  total = kTeam == kWarp ? device::warp_all<device::Sum>(total)
                         : device::block_all<device::Sum>(total, shared, 0.0);
  if (lane == 0) out.emit(k, part, total);
}

/// Kept elements lie next to each other: a thread sums N columns over every eighth row of its part.
template <class T, int N>
__global__ void __launch_bounds__(kThreads, 4)
    across_kernel(const __grid_constant__ Loops<1> kept, const __grid_constant__ FastLoops<1> reduced,
                  const T* x, std::int64_t parts, const __grid_constant__ Output<T> out) {
  __shared__ double shared[kGroups][kWarp * N];
  const int lane = static_cast<int>(threadIdx.x) % kWarp, group = static_cast<int>(threadIdx.x) / kWarp;
  const std::int64_t k0 = std::int64_t{blockIdx.x} * (kWarp * N), k = k0 + lane * N;
  const std::int64_t part = blockIdx.y, each = (reduced.count + parts - 1) / parts;
  const std::int64_t end = min(reduced.count, (part + 1) * each);
  const bool active = k < kept.count;
  const T* column = x + (active ? kept.offset(k) : 0);
  double total[N] = {};
  for (std::int64_t first = part * each + group; first < end; first += kAcrossBatch * kGroups) {
    device::Held<T, N> batch[kAcrossBatch];
#pragma unroll
    for (int i = 0; i < kAcrossBatch; ++i) {
      const std::int64_t m = first + i * kGroups;
      batch[i] = {};
      if (active && m < end) batch[i] = device::load_held<N>(column + reduced.offset(m));
    }
#pragma unroll
    for (int c = 0; c < N; ++c) {
      acc_t<T> sum = 0;
#pragma unroll
      for (int i = 0; i < kAcrossBatch; ++i) sum += batch[i][c];
      total[c] += static_cast<double>(sum);
    }
  }
#pragma unroll
  for (int c = 0; c < N; ++c) shared[group][lane * N + c] = total[c];
  __syncthreads();
  const int mine = static_cast<int>(threadIdx.x);
  if (mine >= kWarp * N || k0 + mine >= kept.count) return;
  double sum = 0;
  for (int g = 0; g < kGroups; ++g) sum += shared[g][mine];
  out.emit(k0 + mine, part, sum);
}

/// y[k] = the parts' sums, in order.
template <class T>
__global__ void __launch_bounds__(kWarp* kWarp)
    join_kernel(std::int64_t parts, const __grid_constant__ Output<T> out) {
  __shared__ double shared[kWarp][kWarp + 1];
  const int tx = static_cast<int>(threadIdx.x) % kWarp, ty = static_cast<int>(threadIdx.x) / kWarp;
  const std::int64_t k = std::int64_t{blockIdx.x} * kWarp + tx, count = out.loops.count;
  double sum = 0;
  if (k < count) {
#pragma unroll 4
    for (std::int64_t p = ty; p < parts; p += kWarp) sum += out.partial_PK[p * count + k];
  }
  shared[ty][tx] = sum;
  __syncthreads();
  if (ty > 0 || k >= count) return;
  sum = 0;
  for (int g = 0; g < kWarp; ++g) sum += shared[g][tx];
  out.finish(k, sum);
}

/// Whether all that steps, but for a dense innermost dimension, steps by whole vectors.
bool whole_vectors(const Loops<1>& loops, bool dense, int n) {
  if (dense && (loops.step(0) != 1 || loops.inner() % n != 0)) return false;
  for (int d = 0; d < loops.ndim - (dense ? 1 : 0); ++d) {
    if (loops.stride[d][0] % n != 0 && loops.extent[d] != 1) return false;
  }
  return true;
}

/// One sum: what is kept, what is summed, where it goes.
template <class T>
class Plan {
 public:
  Plan(Stream& stream, View<const T> x, View<T> y, double factor) : stream_(stream), x_(x.data) {
    for (int d = 0; d < x.ndim(); ++d) {
      const bool sums = y.shape[d] == 1;
      (sums ? reduced_ : kept_).push(x.shape[d], std::array{x.strides[d]});
      if (!sums) out_.loops.push(y.shape[d], std::array{y.strides[d]});
    }
    along_ = kept_.count == 1 ||
             (reduced_.ndim > 0 && kept_.ndim > 0 && std::abs(reduced_.step(0)) <= std::abs(kept_.step(0)));
    for (Loops<1>* loops : {&kept_, &reduced_, &out_.loops}) loops->close();
    out_.y = y.data;
    out_.factor = factor;
  }

  void run() {
    constexpr int kN = device::kVec<T>;
    const bool vectors = device::aligned_rows(x_, 0) && whole_vectors(kept_, !along_, kN) &&
                         whole_vectors(reduced_, along_, kN);
    if (along_) return vectors ? along<kN>() : along<1>();
    vectors ? across<kN>() : across<1>();
  }

 private:
  template <int N>
  void along() {
    const std::int64_t units = reduced_.count / N, team_units = std::int64_t{kAlongBatch} * kThreads;
    if (units <= team_units / 2) return start<kWarp>(along_kernel<T, N, kWarp>, 1, N);
    const std::int64_t most = device::ceil_div(units, team_units);
    start<kThreads>(along_kernel<T, N, kThreads>,
                    std::clamp<std::int64_t>(2 * kBlocksWanted / kept_.count, 1, most), N);
  }

  template <int kTeam, class Kernel>
  void start(Kernel kernel, std::int64_t parts, int lanes) {
    const unsigned blocks = device::grid_for(kept_.count * parts, kThreads / kTeam);
    launch_parts(kernel, dim3(blocks), parts, lanes);
  }

  template <int N>
  void across() {
    const std::int64_t blocks = device::ceil_div(kept_.count, kWarp * N);
    const std::int64_t rows = std::int64_t{kAcrossBatch} * kGroups;  // of one batch
    const std::int64_t most = std::min(device::ceil_div(reduced_.count, rows), kMostPartials / kept_.count);
    const std::int64_t parts =
        std::clamp<std::int64_t>(kBlocksWanted / blocks, 1, std::max<std::int64_t>(1, most));
    launch_parts(across_kernel<T, N>, dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(parts)),
                 parts, 1);
  }

  template <class Kernel>
  void launch_parts(Kernel kernel, dim3 blocks, std::int64_t parts, int lanes) {
    const cudaStream_t queue = device::native(stream_);
    const PurposeScope purpose(Purpose::workspace);
    const std::int64_t partials = parts > 1 ? parts * kept_.count : 0;
    const Storage scratch(Device::cuda, partials * static_cast<std::int64_t>(sizeof(double)));
    out_.partial_PK = parts > 1 ? static_cast<double*>(scratch.data()) : nullptr;
    kernel<<<blocks, kThreads, 0, queue>>>(kept_, FastLoops<1>(reduced_, lanes), x_, parts, out_);
    if (parts == 1) return;
    join_kernel<T><<<device::grid_for(kept_.count, kWarp), kWarp * kWarp, 0, queue>>>(parts, out_);
  }

  Stream& stream_;
  const T* x_;
  Loops<1> kept_, reduced_;
  Output<T> out_{};
  bool along_;
};

}  // namespace

template <class T>
void sum_to(Stream& stream, View<const T> x, View<T> y, double factor) {
  if (y.numel() > 0) Plan<T>(stream, x, y, factor).run();
}

template void sum_to<float>(Stream&, View<const float>, View<float>, double);
template void sum_to<double>(Stream&, View<const double>, View<double>, double);
template void sum_to<bf16>(Stream&, View<const bf16>, View<bf16>, double);

}  // namespace ridge::kernels::cuda
