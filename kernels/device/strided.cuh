// Elementwise kernels on operands of one shape and any strides: loops are merged on the host as far as the
// strides allow, and move in vectors of 16 bytes where every operand allows that.
#pragma once

#include <array>
#include <cstdint>
#include <utility>

#include "core/base/error.h"
#include "core/base/view.h"
#include "kernels/device/launch.cuh"
#include "kernels/device/pack.cuh"
#include "kernels/device/vec.cuh"

namespace ridge::kernels::device {

/// index / extent; in 32 bits where both fit, which is several times as fast.
__device__ __forceinline__ std::int64_t divide(std::int64_t index, std::int64_t extent) {
  if (((index | extent) >> 32) == 0)
    return static_cast<std::uint32_t>(index) / static_cast<std::uint32_t>(extent);
  return index / extent;
}

/// One element, read like the pack of N = 16 bytes that it stands for where there is no such.
template <class T>
struct Single {
  T value{};
  __device__ __forceinline__ acc_t<T> operator[](int) const { return load(value); }
};
template <class T, int N>
using Held = std::conditional_t<N == 1, Single<T>, Pack<T>>;

template <int N, class T>
__device__ __forceinline__ Held<T, N> load_held(const T* from) {
  if constexpr (N == 1) {
    return {*from};
  } else {
    static_assert(N == kVec<T>);
    return load_pack(from);
  }
}

/// A loop nest over K operands, outermost first; strides in elements. At least one dimension once built.
template <int K>
struct Loops {
  int ndim = 0;
  std::int64_t count = 1;
  std::int64_t extent[kMaxDims] = {};
  std::int64_t stride[kMaxDims][K] = {};

  Loops() = default;
  Loops(const Shape& shape, const std::array<Strides, K>& strides) {
    for (int d = 0; d < shape.ndim(); ++d) {
      std::array<std::int64_t, K> steps;
      for (int k = 0; k < K; ++k)
        steps[static_cast<std::size_t>(k)] = strides[static_cast<std::size_t>(k)][d];
      push(shape[d], steps);
    }
    close();
  }
  void push(std::int64_t n, const std::array<std::int64_t, K>& steps) {
    count *= n;
    if (n == 1) return;
    bool merges = ndim > 0;
    for (int k = 0; k < K && merges; ++k)
      merges = stride[ndim - 1][k] == steps[static_cast<std::size_t>(k)] * n;
    if (!merges) extent[ndim++] = 1;
    extent[ndim - 1] *= n;
    for (int k = 0; k < K; ++k) stride[ndim - 1][k] = steps[static_cast<std::size_t>(k)];
  }
  /// One element is a row of one.
  void close() {
    if (ndim > 0) return;
    ndim = 1;
    extent[0] = 1;
    for (int k = 0; k < K; ++k) stride[0][k] = 1;
  }
  std::int64_t inner() const { return extent[ndim - 1]; }
  std::int64_t step(int k) const { return stride[ndim - 1][k]; }

  /// Where the operands have the element of this row-major index.
  __device__ __forceinline__ void offsets(std::int64_t index, std::int64_t (&at)[K]) const {
    for (int k = 0; k < K; ++k) at[k] = 0;
    for (int d = ndim - 1; d > 0; --d) {
      const std::int64_t outer = divide(index, extent[d]);
      for (int k = 0; k < K; ++k) at[k] += (index - outer * extent[d]) * stride[d][k];
      index = outer;
    }
    for (int k = 0; k < K; ++k) at[k] += index * stride[0][k];
  }
  __device__ __forceinline__ std::int64_t offset(std::int64_t index) const {
    static_assert(K == 1);
    std::int64_t at[1];
    offsets(index, at);
    return at[0];
  }
};

/// Division by a number known on the host, right below 2^31 (Granlund and Montgomery, 1994).
struct FastDivisor {
  std::uint32_t value = 1, multiplier = 1, shift = 0;

  FastDivisor() = default;
  explicit FastDivisor(std::uint32_t divisor) : value(divisor) {
    while ((1u << shift) < divisor) ++shift;
    const std::uint64_t excess = (std::uint64_t{1} << shift) - divisor;
    multiplier = static_cast<std::uint32_t>((excess << 32) / divisor + 1);
  }
  __device__ __forceinline__ std::uint32_t divide(std::uint32_t n) const {
    return (__umulhi(n, multiplier) + n) >> shift;
  }
};

/// Loops whose innermost steps are vectors. More than one dimension is numbered in 31 bits.
template <int K>
struct FastLoops {
  int ndim;
  unsigned splat = 0;            // bit k: operand k has one element for a whole row
  std::int64_t count;            // vectors
  FastDivisor extent[kMaxDims];  // the first is not divided by
  std::int64_t stride[kMaxDims][K];

  explicit FastLoops(const Loops<K>& loops, int lanes = 1)
      : ndim(loops.ndim), count(loops.count / lanes), stride{} {
    check(ndim == 1 || count < std::int64_t{1} << 31, "a view that is not dense has 2^31 elements or more");
    for (int d = 0; d < ndim; ++d) {
      const bool last = d == ndim - 1;
      const std::int64_t steps = last ? loops.extent[d] / lanes : loops.extent[d];
      if (d > 0 && steps > 0) extent[d] = FastDivisor(static_cast<std::uint32_t>(steps));
      for (int k = 0; k < K; ++k) stride[d][k] = loops.stride[d][k] * (last ? lanes : 1);
    }
    for (int k = 0; k < K; ++k) splat |= loops.step(k) == 0 ? 1u << k : 0u;
  }

  __device__ __forceinline__ void offsets(std::uint32_t index, std::int64_t (&at)[K]) const {
#pragma unroll
    for (int k = 0; k < K; ++k) at[k] = 0;
#pragma unroll
    for (int d = kMaxDims - 1; d > 0; --d) {
      if (d >= ndim) continue;
      const std::uint32_t outer = extent[d].divide(index);
      const std::int64_t here = index - outer * extent[d].value;
#pragma unroll
      for (int k = 0; k < K; ++k) at[k] += here * stride[d][k];
      index = outer;
    }
#pragma unroll
    for (int k = 0; k < K; ++k) at[k] += static_cast<std::int64_t>(index) * stride[0][k];
  }
  __device__ __forceinline__ std::int64_t offset(std::int64_t index) const {
    static_assert(K == 1);
    if (ndim == 1) return index * stride[0][0];
    std::int64_t at[1];
    offsets(static_cast<std::uint32_t>(index), at);
    return at[0];
  }
};

namespace detail {

template <std::size_t I, int N, class T>
struct Slot {
  Vec<std::remove_const_t<T>, N> value;
};

/// One vector of every operand, in registers.
template <int N, class Index, class... T>
struct Slots;
template <int N, std::size_t... I, class... T>
struct Slots<N, std::index_sequence<I...>, T...> : Slot<I, N, T>... {
  static constexpr int kOperands = sizeof...(T);
  std::int64_t at[kOperands];

  template <bool kSplat>
  __device__ __forceinline__ void read(const FastLoops<kOperands>& loops, std::uint32_t index, T*... data) {
    loops.offsets(index, at);
    (read_one<kSplat, I, T>(data, loops.splat), ...);
  }
  template <class Op>
  __device__ __forceinline__ void finish(const Op& op, T*... data) {
#pragma unroll
    for (int lane = 0; lane < N; ++lane) op(Slot<I, N, T>::value.at[lane]...);
    (write_one<I, T>(data), ...);
  }

 private:
  template <bool kSplat, std::size_t K, class S>
  __device__ __forceinline__ void read_one(S* data, unsigned splat) {
    if constexpr (std::is_const_v<S>) {
      auto& value = Slot<K, N, S>::value;
      if (kSplat && N > 1 && (splat >> K & 1u) != 0) {
        const std::remove_const_t<S> one = data[at[K]];
#pragma unroll
        for (int lane = 0; lane < N; ++lane) value.at[lane] = one;
      } else {
        value = load_vec<std::remove_const_t<S>, N>(data + at[K]);
      }
    }
  }
  template <std::size_t K, class S>
  __device__ __forceinline__ void write_one(S* data) {
    if constexpr (!std::is_const_v<S>) store_vec(data + at[K], Slot<K, N, S>::value);
  }
};

template <class... T>
inline constexpr int kLanes = 16 / static_cast<int>(std::max({sizeof(T)...}));

/// Vectors of one thread: as many loads in flight as hide the latency of memory.
template <int N, class... T>
inline constexpr int kInFlight = N == 1 || (0 + ... + int(std::is_const_v<T>)) <= 1 ? 4 : 2;

/// One block's share. kWhole: it is full and no operand is splat, so that all loads go out before any is
/// used.
template <bool kWhole, int N, class Op, class... T>
__device__ __forceinline__ void map_block(const FastLoops<sizeof...(T)>& loops, const Op& op, T*... data) {
  constexpr int kEach = kInFlight<N, T...>;
  Slots<N, std::index_sequence_for<T...>, T...> slots[kEach];
  const std::uint32_t first = blockIdx.x * (kThreads * kEach) + threadIdx.x;
  const auto count = static_cast<std::uint32_t>(loops.count);
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const std::uint32_t index = first + static_cast<std::uint32_t>(i) * kThreads;
    if (kWhole || index < count) slots[i].template read<!kWhole>(loops, index, data...);
  }
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    if (kWhole || first + static_cast<std::uint32_t>(i) * kThreads < count) slots[i].finish(op, data...);
  }
}

template <int N, class Op, class... T>
__global__ void __launch_bounds__(kThreads)
    map_kernel(const __grid_constant__ FastLoops<sizeof...(T)> loops, Op op, T*... data) {
  constexpr std::uint32_t kShare = kThreads * kInFlight<N, T...>;
  if (loops.splat == 0 && (blockIdx.x + 1) * kShare <= static_cast<std::uint32_t>(loops.count)) {
    map_block<true, N>(loops, op, data...);
  } else {
    map_block<false, N>(loops, op, data...);
  }
}

template <int N, class Op, class... T>
void start_map(cudaStream_t stream, const Op& op, const Loops<sizeof...(T)>& loops, T*... data) {
  const FastLoops<sizeof...(T)> fast(loops, N);
  const unsigned blocks = grid_for(fast.count, kThreads * kInFlight<N, T...>);
  map_kernel<N, Op, T...><<<blocks, kThreads, 0, stream>>>(fast, op, data...);
}

/// Whether rows of operand k can be moved in vectors of n; an input may be one element for the whole row.
template <int K, class T>
bool rows_in_vectors(const Loops<K>& loops, int k, const T* data, bool input, int n) {
  if (loops.step(k) == 0) return input;
  bool fits = loops.step(k) == 1 && aligned_rows(data, 0, n);
  for (int d = 0; d + 1 < loops.ndim; ++d) fits = fits && loops.stride[d][k] % n == 0;
  return fits;
}

template <class Op, std::size_t... I, class... T>
void map_loops(cudaStream_t stream, const Op& op, const Loops<sizeof...(T)>& loops,
               std::index_sequence<I...> operands, T*... data) {
  constexpr int kN = kLanes<T...>;
  constexpr std::int64_t kMost = std::int64_t{1} << 31;
  const bool vectors =
      kN > 2 && (rows_in_vectors(loops, static_cast<int>(I), data, std::is_const_v<T>, kN) && ...);
  std::int64_t cut = 0;  // the outermost extent is cut here, and both parts done alone
  if (loops.count >= kMost) {
    cut = loops.ndim > 1 ? loops.extent[0] / 2 : loops.extent[0] / 32 * 16;
  } else if (vectors && loops.ndim == 1 && loops.inner() > kN) {
    cut = loops.inner() % kN == 0 ? 0 : loops.inner() / kN * kN;
  }
  if (cut > 0) {
    Loops<sizeof...(T)> head = loops, tail = loops;
    head.extent[0] = cut;
    tail.extent[0] -= cut;
    head.count = loops.count / loops.extent[0] * cut;
    tail.count = loops.count - head.count;
    map_loops(stream, op, head, operands, data...);
    return map_loops(stream, op, tail, operands, (data + cut * loops.stride[0][I])...);
  }
  if constexpr (kN > 2) {
    if (vectors && loops.inner() % kN == 0) return start_map<kN>(stream, op, loops, data...);
  }
  start_map<1>(stream, op, loops, data...);
}

}  // namespace detail

/// Calls `op(element&...)` on the device for every element, in any order. Operands that are const are read,
/// the others written: one that is both is passed twice, as input and as output.
template <class Op, class First, class... T>
void map(Stream& stream, const Op& op, const View<First>& first, const View<T>&... rest) {
  constexpr int kOperands = 1 + sizeof...(T);
  const Loops<kOperands> loops(first.shape, {first.strides, rest.strides...});
  if (loops.count == 0) return;
  detail::map_loops(native(stream), op, loops, std::make_index_sequence<kOperands>(), first.data,
                    rest.data...);
}

}  // namespace ridge::kernels::device
