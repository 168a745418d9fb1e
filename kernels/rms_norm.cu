// R rows, C channels, P partial sums of the weight's gradient. A team of threads holds one row in registers,
// so that memory is read once; rows that are not aligned or too long for that go through L1 twice.
#include "kernels/rms_norm.h"

#include "core/base/cuda.h"
#include "core/base/cuda_check.h"
#include "kernels/device/block.cuh"
#include "kernels/device/launch.cuh"
#include "kernels/device/pack.cuh"
#include "kernels/device/vec.cuh"

namespace ridge::kernels::cuda {
namespace {

using device::ceil_div, device::kVec, device::load, device::load_pack, device::load_pack_once, device::native;
using device::Pack, device::round_to, device::store_pack, device::store_vec, device::Sum, device::Vec;
using device::warp_all;

/// The sum as if its terms had been stored first: no fused multiply-add, so that a fused kernel and two plain
/// ones give the same bits.
__device__ __forceinline__ float add_apart(float a, float b) { return __fadd_rn(a, b); }
__device__ __forceinline__ double add_apart(double a, double b) { return __dadd_rn(a, b); }

constexpr int kAnyBlock = 256, kForwardBlock = 64, kForwardMost = 512, kBackwardBlock = 512;  // threads
constexpr int kMostVecs = 4;  // of one row in one thread

/// This thread's place in the team of `threads` that shares a row: a power of two below 32, or whole warps.
struct Team {
  int threads, slot, index;
  __device__ explicit Team(int size)
      : threads(size),
        slot(static_cast<int>(threadIdx.x) / size),
        index(static_cast<int>(threadIdx.x) % size) {}
  __device__ __forceinline__ Team()  // the whole block
      : threads(static_cast<int>(blockDim.x)), slot(0), index(static_cast<int>(threadIdx.x)) {}
};

/// Every thread of the team gets the sum. All teams of a block call this equally often; `turn` alternates, so
/// that one barrier a call is enough. `shared` holds 64 values.
template <class A>
__device__ __forceinline__ A team_sum(A value, const Team& team, A* shared, int turn) {
  if (team.threads <= 32) {
    for (int step = team.threads / 2; step > 0; step /= 2) value += __shfl_xor_sync(0xFFFFFFFFu, value, step);
    return value;
  }
  const int lane = static_cast<int>(threadIdx.x) % 32, warps = team.threads / 32;
  A* mine = shared + turn * 32 + team.slot * warps;
  value = warp_all<Sum>(value);
  if (lane == 0) mine[team.index / 32] = value;
  __syncthreads();
  return warp_all<Sum>(lane < warps ? mine[lane] : A(0));
}

/// A thread's vectors of one row that has `count`; zeros beyond. kOnce: they are not read again.
template <int V, bool kOnce = true, class T>
__device__ __forceinline__ void load_row(Pack<T> (&into)[V], const T* row, const Team& team, int count) {
#pragma unroll
  for (int v = 0; v < V; ++v) {
    const int i = team.index + v * team.threads;
    into[v] = {};
    if (i < count) into[v] = kOnce ? load_pack_once(row + i * kVec<T>) : load_pack(row + i * kVec<T>);
  }
}

/// Rows go round the blocks, as many at a time as a block has teams.
__device__ __forceinline__ std::int64_t first_row(int teams) {
  return static_cast<std::int64_t>(blockIdx.x) * teams;
}
__device__ __forceinline__ std::int64_t row_step(int teams) {
  return static_cast<std::int64_t>(gridDim.x) * teams;
}

/// Rows of the forward pass: `delta` and `sum` null where nothing is added.
template <class T>
struct Forward {
  const T *x_RC, *delta_RC, *weight_C;
  T *sum_RC, *y_RC;
  acc_t<T>* inv_rms_R;  // null: not wanted
  std::int64_t rows, channels, x_stride, delta_stride, sum_stride, y_stride, inv_stride;
  acc_t<T> eps, per_channel;  // per_channel: 1 / channels

  __device__ __forceinline__ acc_t<T> inverse(acc_t<T> squares) const {
    return rsqrt(squares * per_channel + eps);
  }
};

/// What a thread holds of one row before it is normalized.
template <class T, int V, bool kAdd>
struct Entering {
  Pack<T> x[V], delta[kAdd ? V : 1];

  __device__ __forceinline__ void fetch(const Forward<T>& f, std::int64_t r, const Team& team, int vectors) {
    const int count = r < f.rows ? vectors : 0;
    load_row<V>(x, f.x_RC + r * f.x_stride, team, count);
    if constexpr (kAdd) load_row<V>(delta, f.delta_RC + r * f.delta_stride, team, count);
  }
  /// x becomes the sum.
  __device__ __forceinline__ void add(T* sum, const Team& team, int count) {
    constexpr int N = kVec<T>;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      acc_t<T> both[N];
#pragma unroll
      for (int k = 0; k < N; ++k) both[k] = x[v][k] + delta[v][k];
      x[v] = Pack<T>::of(both);
      const int i = team.index + v * team.threads;
      if (i < count) store_pack(sum + i * N, x[v]);
    }
  }
};

/// Blocks stay, with the weight in registers; the next row is on its way while a row is worked on.
template <class T, int V, bool kAdd>
__global__ void __launch_bounds__(kForwardMost) forward_kernel(Forward<T> f, int team_threads) {
  using A = acc_t<T>;
  constexpr int N = kVec<T>;
  __shared__ A shared[64];
  constexpr bool kWhole = V == kMostVecs;
  const Team team = kWhole ? Team() : Team(team_threads);
  const int teams = kWhole ? 1 : static_cast<int>(blockDim.x) / team_threads;
  const int vectors = static_cast<int>(f.channels) / N;
  Entering<T, V, kAdd> now, next;
  next.fetch(f, first_row(teams) + team.slot, team, vectors);
  Pack<T> weight[V];
  load_row<V, false>(weight, f.weight_C, team, vectors);
  int turn = 0;
  for (std::int64_t base = first_row(teams); base < f.rows; base += row_step(teams), turn ^= 1) {
    const std::int64_t r = base + team.slot;
    const int count = r < f.rows ? vectors : 0;
    now = next;
    next.fetch(f, r + row_step(teams), team, vectors);
    if constexpr (kAdd) now.add(f.sum_RC + r * f.sum_stride, team, count);
    A squares = 0;
#pragma unroll
    for (int v = 0; v < V; ++v) {
#pragma unroll
      for (int k = 0; k < N; ++k) squares += now.x[v][k] * now.x[v][k];
      now.x[v].forget_unpacked();
    }
    const A inv_rms = f.inverse(team_sum(squares, team, shared, turn));
    if (f.inv_rms_R != nullptr && team.index == 0 && r < f.rows) f.inv_rms_R[r * f.inv_stride] = inv_rms;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      weight[v].forget_unpacked();
      A y[N];
#pragma unroll
      for (int k = 0; k < N; ++k) y[k] = now.x[v][k] * inv_rms;
      const Pack<T> normalized = Pack<T>::of(y);
#pragma unroll
      for (int k = 0; k < N; ++k) y[k] = normalized[k] * weight[v][k];
      const int i = team.index + v * team.threads;
      if (i < count) store_pack(f.y_RC + r * f.y_stride + i * N, Pack<T>::of(y));
    }
  }
}

/// The same for any channels and strides: a block a row.
template <class T>
__global__ void __launch_bounds__(kAnyBlock) forward_any_kernel(Forward<T> f) {
  using A = acc_t<T>;
  __shared__ A shared[33];
  for (std::int64_t r = blockIdx.x; r < f.rows; r += gridDim.x) {
    const T* x = f.x_RC + r * f.x_stride;
    A squares = 0;
    for (std::int64_t c = threadIdx.x; c < f.channels; c += blockDim.x) {
      T value = x[c];
      if (f.delta_RC != nullptr) {
        value = round_to<T>(load(value) + load(f.delta_RC[r * f.delta_stride + c]));
        f.sum_RC[r * f.sum_stride + c] = value;
      }
      squares += load(value) * load(value);
    }
    const A inv_rms = f.inverse(device::block_all<Sum>(squares, shared, A(0)));
    if (f.inv_rms_R != nullptr && threadIdx.x == 0) f.inv_rms_R[r * f.inv_stride] = inv_rms;
    const T* normed = f.delta_RC != nullptr ? f.sum_RC + r * f.sum_stride : x;
    for (std::int64_t c = threadIdx.x; c < f.channels; c += blockDim.x) {
      const A normalized = load(round_to<T>(load(normed[c]) * inv_rms));
      f.y_RC[r * f.y_stride + c] = round_to<T>(normalized * load(f.weight_C[c]));
    }
  }
}

/// `residual` null: nothing is added to dx. `partial` null: no gradient of the weight.
template <class T>
struct Backward {
  const T *dy_RC, *x_RC, *weight_C, *residual_RC;
  const acc_t<T>* inv_rms_R;
  T* dx_RC;
  acc_t<T>* partial_PC;
  std::int64_t rows, channels, dy_stride, x_stride, residual_stride, dx_stride, inv_stride;
};

/// What a thread holds of one row.
template <class T, int V>
struct Piece {
  Pack<T> dy[V], x[V];
  acc_t<T> inv_rms;

  __device__ __forceinline__ void fetch(const Backward<T>& b, std::int64_t r, const Team& team, int vectors) {
    const int count = r < b.rows ? vectors : 0;
    inv_rms = r < b.rows ? b.inv_rms_R[r * b.inv_stride] : acc_t<T>(0);
    load_row<V>(dy, b.dy_RC + r * b.dy_stride, team, count);
    load_row<V>(x, b.x_RC + r * b.x_stride, team, count);
  }
};

/// partial[c] of one block: the sum over its teams of what their threads hold.
template <class A, int N, int V>
__device__ __forceinline__ void store_partial(A* partial_C, const A (&sums)[V][N], A* slots, const Team& team,
                                              int teams, int vectors) {
  if (teams == 1) {
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const int i = team.index + v * team.threads;
      if (i >= vectors) continue;
#pragma unroll
      for (int k = 0; k < N; k += kVec<A>)
        store_vec(partial_C + i * N + k, *reinterpret_cast<const Vec<A, kVec<A>>*>(&sums[v][k]));
    }
  } else if constexpr (V == 1) {  // several teams have one vector a thread
#pragma unroll
    for (int k = 0; k < N; ++k) slots[threadIdx.x * N + k] = sums[0][k];
    __syncthreads();
    for (int c = static_cast<int>(threadIdx.x); c < vectors * N; c += static_cast<int>(blockDim.x)) {
      A sum = 0;
      for (int s = 0; s < teams; ++s) sum += slots[s * team.threads * N + c];
      partial_C[c] = sum;
    }
  }
}

/// The next row is on its way while a row is worked on. With kWeight, block p leaves its rows' share of the
/// weight's gradient in partial[p].
template <class T, int V, bool kWeight>
__global__ void __launch_bounds__(kBackwardBlock, V == 1 ? 2 : 1)
    backward_kernel(Backward<T> b, int team_threads) {
  using A = acc_t<T>;
  constexpr int N = kVec<T>;
  constexpr bool kAhead = V <= 2;  // more would not fit into registers
  __shared__ A shared[64];
  __shared__ A slots[kWeight && V == 1 ? kBackwardBlock * N : 1];
  const Team team(team_threads);
  const int teams = static_cast<int>(blockDim.x) / team_threads, vectors = static_cast<int>(b.channels) / N;
  const A mean_factor = A(1) / static_cast<A>(b.channels);
  A sums[V][N] = {};
  Pack<T> weight[V];
  load_row<V>(weight, b.weight_C, team, vectors);
  Piece<T, V> now, next;
  now.fetch(b, first_row(teams) + team.slot, team, vectors);
  int turn = 0;
  for (std::int64_t base = first_row(teams); base < b.rows; base += row_step(teams), turn ^= 1) {
    const std::int64_t r = base + team.slot;
    const int count = r < b.rows ? vectors : 0;
    if constexpr (kAhead) next.fetch(b, r + row_step(teams), team, vectors);
    Pack<T> residual[V];
    if (b.residual_RC != nullptr) load_row<V>(residual, b.residual_RC + r * b.residual_stride, team, count);
    A projection = 0;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      weight[v].forget_unpacked();
#pragma unroll
      for (int k = 0; k < N; ++k) projection += now.dy[v][k] * weight[v][k] * now.x[v][k];
      now.dy[v].forget_unpacked();
      now.x[v].forget_unpacked();
      weight[v].forget_unpacked();
    }
    const A mean = team_sum(projection, team, shared, turn) * now.inv_rms * mean_factor;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      A dx[N];
#pragma unroll
      for (int k = 0; k < N; ++k) {
        const A d = now.dy[v][k], normalized = now.x[v][k] * now.inv_rms;
        if constexpr (kWeight) sums[v][k] += d * normalized;
        const A gradient = now.inv_rms * (d * weight[v][k] - normalized * mean);
        dx[k] = add_apart(residual[v][k], load(round_to<T>(gradient)));
      }
      const int i = team.index + v * team_threads;
      if (i < count) store_pack(b.dx_RC + r * b.dx_stride + i * N, Pack<T>::of(dx));
    }
    if constexpr (kAhead) {
      now = next;
    } else {
      now.fetch(b, r + row_step(teams), team, vectors);
    }
  }
  if constexpr (kWeight)
    store_partial<A, N, V>(b.partial_PC + blockIdx.x * b.channels, sums, slots, team, teams, vectors);
}

/// dx for any channels and strides: a block a row.
template <class T>
__global__ void __launch_bounds__(kAnyBlock) backward_any_kernel(Backward<T> b) {
  using A = acc_t<T>;
  __shared__ A shared[33];
  for (std::int64_t r = blockIdx.x; r < b.rows; r += gridDim.x) {
    const T *dy = b.dy_RC + r * b.dy_stride, *x = b.x_RC + r * b.x_stride;
    A projection = 0;
    for (std::int64_t c = threadIdx.x; c < b.channels; c += blockDim.x)
      projection += load(dy[c]) * load(b.weight_C[c]) * load(x[c]);
    const A inv_rms = b.inv_rms_R[r * b.inv_stride];
    const A mean = device::block_all<Sum>(projection, shared, A(0)) * inv_rms / static_cast<A>(b.channels);
    for (std::int64_t c = threadIdx.x; c < b.channels; c += blockDim.x) {
      const A gradient = inv_rms * (load(dy[c]) * load(b.weight_C[c]) - load(x[c]) * inv_rms * mean);
      const A before = b.residual_RC != nullptr ? load(b.residual_RC[r * b.residual_stride + c]) : A(0);
      b.dx_RC[r * b.dx_stride + c] = round_to<T>(add_apart(before, load(round_to<T>(gradient))));
    }
  }
}

/// partial[p][c] over rows p, p + P, ...: a thread a channel.
template <class T>
__global__ void __launch_bounds__(kAnyBlock) partial_kernel(Backward<T> b) {
  using A = acc_t<T>;
  const std::int64_t c = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (c >= b.channels) return;
  A sum = 0;
  for (std::int64_t r = blockIdx.y; r < b.rows; r += gridDim.y)
    sum += load(b.dy_RC[r * b.dy_stride + c]) *
           (load(b.x_RC[r * b.x_stride + c]) * b.inv_rms_R[r * b.inv_stride]);
  b.partial_PC[blockIdx.y * b.channels + c] = sum;
}

/// dweight[c] = sum over p of partial[p][c]: 32 channels a block, 32 sums of every 32nd part each.
template <class A>
__global__ void __launch_bounds__(1024)
    combine_kernel(const A* partial_PC, A* dweight_C, int parts, std::int64_t channels) {
  __shared__ A shared[32][33];
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * 32, c = first + threadIdx.x;
  A sum = 0;
  if (c < channels) {
#pragma unroll 8
    for (int p = threadIdx.y; p < parts; p += 32) sum += partial_PC[p * channels + c];
  }
  shared[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  sum = warp_all<Sum>(shared[threadIdx.x][threadIdx.y]);
  if (threadIdx.x == 0 && first + threadIdx.y < channels) dweight_C[first + threadIdx.y] = sum;
}

/// How a row of vectors is laid over threads.
struct Layout {
  int each = 1;  // vectors a thread: 1, 2 or 4; 0 for a row that is too long
  int team = 8;  // threads a row
  int teams = 1;

  /// More than one vector a thread where a row needs more than `enough` threads; about `block` threads in
  /// all.
  Layout(std::int64_t vectors, int enough, int block, int most) {
    while (each < kMostVecs && ceil_div(vectors, each) > enough) each *= 2;
    const std::int64_t threads = ceil_div(vectors, each);
    if (threads > most) {
      each = 0;
      return;
    }
    while (team < threads && team < device::kWarp) team *= 2;
    if (threads > device::kWarp) team = static_cast<int>(ceil_div(threads, device::kWarp)) * device::kWarp;
    teams = std::max(1, block / team);
  }
};

/// As many blocks as run at once, so that none starts late.
template <class... Arguments>
unsigned resident_blocks(void (*kernel)(Arguments...), int threads, std::int64_t wanted) {
  int each = 0;
  check_cuda(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, threads, 0));
  return device::grid_for(wanted, 1, std::int64_t{std::max(1, each)} * ridge::cuda::multiprocessors());
}

template <class T, bool kAdd>
void run_forward(Stream& stream, const Forward<T>& f, bool vectors) {
  Layout layout(f.channels / kVec<T>, device::kWarp, kForwardBlock, kForwardMost);
  if (!vectors || layout.each == 0)
    return forward_any_kernel<T><<<device::grid_for(f.rows, 1), kAnyBlock, 0, native(stream)>>>(f);
  if (layout.each == kMostVecs) layout.teams = 1;
  const auto start = [&](auto kernel) {
    const int threads = layout.team * layout.teams;
    const unsigned blocks = resident_blocks(kernel, threads, ceil_div(f.rows, layout.teams));
    kernel<<<blocks, threads, 0, native(stream)>>>(f, layout.team);
  };
  if (layout.each == 1) return start(forward_kernel<T, 1, kAdd>);
  if (layout.each == 2) return start(forward_kernel<T, 2, kAdd>);
  start(forward_kernel<T, 4, kAdd>);
}

template <class T, bool kWeight>
void run_backward(Stream& stream, const Backward<T>& b, unsigned parts, bool vectors) {
  const Layout layout(b.channels / kVec<T>, kBackwardBlock, kBackwardBlock, kBackwardBlock);
  if (vectors && layout.each != 0) {
    const auto start = [&](auto kernel) {
      kernel<<<parts, layout.team * layout.teams, 0, native(stream)>>>(b, layout.team);
    };
    if (layout.each == 1) return start(backward_kernel<T, 1, kWeight>);
    if (layout.each == 2) return start(backward_kernel<T, 2, kWeight>);
    return start(backward_kernel<T, 4, kWeight>);
  }
  if constexpr (kWeight) {  // before dx, which may take the place of dy
    const dim3 grid(static_cast<unsigned>(ceil_div(b.channels, kAnyBlock)), parts);
    partial_kernel<T><<<grid, kAnyBlock, 0, native(stream)>>>(b);
  }
  if (b.rows > 0) backward_any_kernel<T><<<device::grid_for(b.rows, 1), kAnyBlock, 0, native(stream)>>>(b);
}

template <class T>
std::int64_t stride_of(const View<T>& view) {
  return view.ndim() != 0 ? view.strides[0] : 0;
}

/// Whether every row can be moved in vectors of 16 bytes.
template <class T>
bool in_vectors(const View<const T>& weight_C, std::initializer_list<View<const T>> operands_RC) {
  bool all = weight_C.dim(0) % kVec<T> == 0 && device::aligned_rows(weight_C.data, 0);
  for (const View<const T>& rows : operands_RC)
    all = all && (rows.ndim() == 0 || device::aligned_rows(rows.data, rows.strides[0]));
  return all;
}

/// A view without dimensions has no address.
template <class T>
T* address_of(const View<T>& view) {
  return view.ndim() != 0 ? view.data : nullptr;
}

}  // namespace

template <class T>
void rms_norm(Stream& stream, View<const T> x_RC, View<const T> delta_RC, View<const T> weight_C,
              View<T> sum_RC, View<T> y_RC, View<acc_t<T>> inv_rms_R, double eps) {
  const Forward<T> f{x_RC.data,
                     address_of(delta_RC),
                     weight_C.data,
                     address_of(sum_RC),
                     y_RC.data,
                     address_of(inv_rms_R),
                     x_RC.dim(0),
                     x_RC.dim(1),
                     x_RC.strides[0],
                     stride_of(delta_RC),
                     stride_of(sum_RC),
                     y_RC.strides[0],
                     stride_of(inv_rms_R),
                     static_cast<acc_t<T>>(eps),
                     static_cast<acc_t<T>>(1 / static_cast<double>(std::max<std::int64_t>(1, x_RC.dim(1))))};
  if (f.rows == 0 || f.channels == 0) return;
  const bool vectors = in_vectors<T>(weight_C, {x_RC, delta_RC, sum_RC, y_RC});
  f.delta_RC != nullptr ? run_forward<T, true>(stream, f, vectors)
                        : run_forward<T, false>(stream, f, vectors);
}

template <class T>
void rms_norm_backward(Stream& stream, View<const T> dy_RC, View<const T> x_RC, View<const T> weight_C,
                       View<const acc_t<T>> inv_rms_R, View<T> dx_RC, View<acc_t<T>> dweight_C,
                       View<const T> residual_RC, View<acc_t<T>> partial_PC) {
  const Backward<T> b{dy_RC.data,       x_RC.data,           weight_C.data,          address_of(residual_RC),
                      inv_rms_R.data,   dx_RC.data,          address_of(partial_PC), x_RC.dim(0),
                      x_RC.dim(1),      dy_RC.strides[0],    x_RC.strides[0],        stride_of(residual_RC),
                      dx_RC.strides[0], inv_rms_R.strides[0]};
  if (b.channels == 0) return;
  const bool vectors = in_vectors<T>(weight_C, {dy_RC, x_RC, residual_RC, dx_RC});
  const auto parts = static_cast<unsigned>(rms_norm_parts(b.rows));
  if (dweight_C.ndim() == 0) return run_backward<T, false>(stream, b, parts, vectors);
  run_backward<T, true>(stream, b, parts, vectors);
  const auto blocks = static_cast<unsigned>(ceil_div(b.channels, 32));
  combine_kernel<<<blocks, dim3(32, 32), 0, native(stream)>>>(b.partial_PC, dweight_C.data,
                                                              static_cast<int>(parts), b.channels);
}

template void rms_norm<float>(Stream&, View<const float>, View<const float>, View<const float>, View<float>,
                              View<float>, View<float>, double);
template void rms_norm_backward<float>(Stream&, View<const float>, View<const float>, View<const float>,
                                       View<const float>, View<float>, View<float>, View<const float>,
                                       View<float>);

template void rms_norm<double>(Stream&, View<const double>, View<const double>, View<const double>,
                               View<double>, View<double>, View<double>, double);
template void rms_norm_backward<double>(Stream&, View<const double>, View<const double>, View<const double>,
                                        View<const double>, View<double>, View<double>, View<const double>,
                                        View<double>);

template void rms_norm<bf16>(Stream&, View<const bf16>, View<const bf16>, View<const bf16>, View<bf16>,
                             View<bf16>, View<float>, double);
template void rms_norm_backward<bf16>(Stream&, View<const bf16>, View<const bf16>, View<const bf16>,
                                      View<const float>, View<bf16>, View<float>, View<const bf16>,
                                      View<float>);

}  // namespace ridge::kernels::cuda
