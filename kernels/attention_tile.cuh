// Pieces of the attention kernels: strided operands, the mask, and products of tiles in shared memory.
//
// A block of 16 x 16 threads owns a tile of kTile x kTile scores: thread (x, y) has rows y R .. y R + R - 1
// and columns x, x + 16, ... . Of a tile of kTile x D sums it has the same rows, and columns in vectors of
// 16 bytes: x V .. x V + V - 1, and on from there in steps of 16 V.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "core/base/cuda_check.h"
#include "core/base/view.h"
#include "kernels/attention_problem.h"
#include "kernels/device/block.cuh"
#include "kernels/device/launch.cuh"
#include "kernels/device/vec.cuh"

namespace ridge::kernels::cuda {

inline constexpr int kTileThreads = 256;

/// 16 bytes of elements that stay packed until they are used: a bf16 of its own would take a whole register.
struct alignas(16) Packed {
  unsigned word[4];

  template <class T>
  __device__ acc_t<T> get(int i) const {
    if constexpr (sizeof(T) == 8)
      return __hiloint2double(static_cast<int>(word[2 * i + 1]), static_cast<int>(word[2 * i]));
    if constexpr (sizeof(T) == 4) return __uint_as_float(word[i]);
    if constexpr (sizeof(T) == 2)
      return __uint_as_float(i % 2 == 0 ? word[i / 2] << 16 : word[i / 2] & 0xFFFF0000u);
  }
  __device__ void set(int i, double x) {
    word[2 * i] = static_cast<unsigned>(__double2loint(x));
    word[2 * i + 1] = static_cast<unsigned>(__double2hiint(x));
  }
  __device__ void set(int i, float x) { word[i] = __float_as_uint(x); }
  __device__ void set(int i, bf16 x) {
    word[i / 2] |= static_cast<unsigned>(x.bits) << i % 2 * 16;
  }  // zero before
};

/// A [B, T, H, D] operand whose last dim is dense.
template <class T>
struct Heads {
  T* data;
  std::int64_t batch, token, head;  // strides
  bool vectors;                     // rows can be read in vectors of 16 bytes

  __device__ T* row(std::int64_t b, std::int64_t t, std::int64_t h) const {
    return data + b * batch + t * token + h * head;
  }
};

template <class T>
Heads<T> heads_of(const View<T>& x_BTHD) {
  Heads<T> x{x_BTHD.data, x_BTHD.strides[0], x_BTHD.strides[1], x_BTHD.strides[2], true};
  const auto aligned = [&](int d) { return x_BTHD.dim(d) == 1 || x_BTHD.strides[d] % device::kVec<T> == 0; };
  x.vectors = device::aligned_rows(x.data, 0) && x_BTHD.dim(3) % device::kVec<T> == 0 && aligned(0) &&
              aligned(1) && aligned(2);
  return x;
}

/// A [B, H, T] array of one value a query and head.
template <class A>
struct PerQuery {
  A* data;
  std::int64_t batch, head, token;  // strides

  __device__ A* at(std::int64_t b, std::int64_t h, std::int64_t t) const {
    return data + b * batch + h * head + t * token;
  }
};

/// `data` is null for a view without dims.
template <class A>
PerQuery<A> per_query(const View<A>& x_BHT) {
  if (x_BHT.ndim() == 0) return {nullptr, 0, 0, 0};
  return {x_BHT.data, x_BHT.strides[0], x_BHT.strides[1], x_BHT.strides[2]};
}

/// Keys fit 32 bits.
struct Seen {
  int begin, end;
  __device__ bool has(std::int64_t key) const { return key >= begin && key < end; }
};

struct Mask {
  std::int64_t queries, keys, offset;
  std::int64_t window;  // 0: no limit
  bool causal;

  explicit Mask(const attention_detail::Problem& p)
      : queries(p.queries),
        keys(p.keys),
        offset(p.options.q_offset),
        window(p.options.window > kFar ? 0 : p.options.window),
        causal(p.options.causal) {}
  __device__ Seen of(std::int64_t t) const {
    const std::int64_t position = offset + t;
    const std::int64_t end = causal ? clip(position + 1, 0, keys) : keys;
    const std::int64_t begin = window > 0 ? clip(position + 1 - window, 0, end) : 0;
    return {static_cast<int>(begin), static_cast<int>(end)};
  }
  /// The queries that see some key of [begin, end) lie in the result, which may be empty.
  __device__ Seen queries_of(std::int64_t begin, std::int64_t end) const {
    const std::int64_t first = causal ? clip(begin - offset, 0, queries) : 0;
    const std::int64_t last = window > 0 ? clip(end - 1 + window - offset, 0, queries) : queries;
    return {static_cast<int>(first), static_cast<int>(last)};
  }

 private:
  static constexpr std::int64_t kFar = std::int64_t{1} << 40;
  static __device__ std::int64_t clip(std::int64_t x, std::int64_t low, std::int64_t high) {
    return x < low ? low : x > high ? high : x;
  }
};

/// Exponentials and logarithms to the base 2: scores are scaled by log2 e beforehand.
inline constexpr double kLog2e = 1.4426950408889634;
inline constexpr double kLn2 = 0.6931471805599453;
__device__ __forceinline__ float power2(float x) { return exp2f(x); }
__device__ __forceinline__ double power2(double x) { return exp2(x); }
__device__ __forceinline__ float logarithm2(float x) { return log2f(x); }
__device__ __forceinline__ double logarithm2(double x) { return log2(x); }
template <class A>
__device__ __forceinline__ A nothing() {
  return -static_cast<A>(__int_as_float(0x7F800000));
}

/// Sum or maximum over the 16 threads that share rows.
template <class Op, class A>
__device__ __forceinline__ A row_all(A value, Op op = {}) {
#pragma unroll
  for (int step = 8; step > 0; step /= 2) value = op(value, __shfl_xor_sync(0xFFFFFFFFu, value, step));
  return value;
}

template <class T, int kDim>
struct Tile {
  using A = acc_t<T>;
  static constexpr int kRows = attention_detail::tile_rows(sizeof(A), kDim);
  static constexpr int R = kRows / 16;                        // rows (and columns) a thread
  static constexpr int V = 16 / static_cast<int>(sizeof(A));  // sums a vector
  static constexpr int kChunks = kDim / (16 * V);             // vectors a row and thread
  static constexpr int kStride = kDim + V;                    // of a tile's rows: no bank conflicts
  static constexpr int kWeightStride = kRows + V;             // of a tile of scores
  static constexpr int kSize = kRows * kStride;               // elements
  static constexpr int kWeights = kRows * kWeightStride;      // elements
  static constexpr int kLoads = device::kVec<T>;              // elements a load
  static constexpr int kLoadChunks = (kDim + 16 * kLoads - 1) / (16 * kLoads);  // loads a row and thread

  static __device__ int x() { return static_cast<int>(threadIdx.x) % 16; }
  static __device__ int y() { return static_cast<int>(threadIdx.x) / 16; }
  static __device__ int column(int chunk) { return (chunk * 16 + x()) * V; }

  /// Rows of D elements, widened; zeros beyond `count` rows and beyond D. Row i begins at from + i * stride.
  static __device__ void load(A* tile, const T* from, std::int64_t stride, int count, int head_dim,
                              bool vectors) {
    Packed raw[R][kLoadChunks];
#pragma unroll
    for (int i = 0; i < R; ++i) {
#pragma unroll
      for (int c = 0; c < kLoadChunks; ++c) {
        const int row = y() + 16 * i, d = (c * 16 + x()) * kLoads;
        raw[i][c] = Packed{};
        if (row >= count || d >= head_dim) continue;
        const T* at = from + row * stride + d;
        if (vectors) {
          raw[i][c] = *reinterpret_cast<const Packed*>(at);
        } else {
#pragma unroll
          for (int e = 0; e < kLoads; ++e) {
            if (d + e < head_dim) raw[i][c].set(e, at[e]);
          }
        }
      }
    }
#pragma unroll
    for (int i = 0; i < R; ++i) {
#pragma unroll
      for (int c = 0; c < kLoadChunks; ++c) {
        const int d = (c * 16 + x()) * kLoads;
        if (d < kDim) widen(raw[i][c], tile + (y() + 16 * i) * kStride + d);
      }
    }
  }

  /// scores[i][j] = row (y R + i) of a times row (x + 16 j) of b.
  static __device__ void dot(const A* a, const A* b, int head_dim, A (&scores)[R][R]) {
    using Group = device::Vec<A, V>;
#pragma unroll
    for (int i = 0; i < R; ++i) {
#pragma unroll
      for (int j = 0; j < R; ++j) scores[i][j] = A(0);
    }
#pragma unroll 1
    for (int d = 0; d < head_dim; d += V) {
      Group left[R], right[R];
#pragma unroll
      for (int i = 0; i < R; ++i) {
        left[i] = device::load_vec<A, V>(a + (y() * R + i) * kStride + d);
        right[i] = device::load_vec<A, V>(b + (x() + 16 * i) * kStride + d);
      }
#pragma unroll
      for (int e = 0; e < V; ++e) {
#pragma unroll
        for (int i = 0; i < R; ++i) {
#pragma unroll
          for (int j = 0; j < R; ++j) scores[i][j] += left[i].at[e] * right[j].at[e];
        }
      }
    }
  }

  /// sums[i] += row (y R + i) of the weights times the first `count` rows of the tile (weights beyond are 0).
  static __device__ void mix(const A* weights, const A* tile, int count, A (&sums)[R][kChunks * V]) {
    using Group = device::Vec<A, V>;
    for (int k = 0; k < count; k += V) {
      Group weight[R];
#pragma unroll
      for (int i = 0; i < R; ++i) {
        weight[i] = device::load_vec<A, V>(weights + (y() * R + i) * kWeightStride + k);
      }
#pragma unroll
      for (int e = 0; e < V; ++e) {
#pragma unroll
        for (int c = 0; c < kChunks; ++c) {
          const Group value = device::load_vec<A, V>(tile + (k + e) * kStride + column(c));
#pragma unroll
          for (int i = 0; i < R; ++i) {
#pragma unroll
            for (int f = 0; f < V; ++f) sums[i][c * V + f] += weight[i].at[e] * value.at[f];
          }
        }
      }
    }
  }

  /// Writes this thread's columns of one row, times `factor`.
  static __device__ void store(T* row, const A (&sums)[kChunks * V], A factor, int head_dim) {
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
#pragma unroll
      for (int f = 0; f < V; ++f) {
        if (column(c) + f < head_dim) row[column(c) + f] = device::round_to<T>(sums[c * V + f] * factor);
      }
    }
  }

 private:
  static __device__ void widen(const Packed& raw, A* to) {
#pragma unroll
    for (int e = 0; e < kLoads; e += V) {
      device::Vec<A, V> wide;
#pragma unroll
      for (int f = 0; f < V; ++f) wide.at[f] = raw.get<T>(e + f);
      device::store_vec(to + e, wide);
    }
  }
};

/// Calls `f(std::integral_constant<int, kDim>{})` for the least padded head dim that holds `head_dim`.
template <class F>
void visit_head_dim(std::int64_t head_dim, F&& f) {
  if (head_dim <= 64) return f(std::integral_constant<int, 64>{});
  if (head_dim <= 128) return f(std::integral_constant<int, 128>{});
  if (head_dim <= attention_detail::kDeviceHeadDims) return f(std::integral_constant<int, 256>{});
  fail_user("attention: the model's head dim is {}, a GPU takes at most {}: use --device cpu", head_dim,
            attention_detail::kDeviceHeadDims);
}

/// A kernel with more shared memory than comes by itself; nothing for no blocks.
template <class... Params>
void launch_tiles(void (*kernel)(Params...), std::int64_t blocks, int threads, int shared_bytes,
                  const Stream& stream, const std::type_identity_t<Params>&... params) {
  if (blocks == 0) return;
  check(blocks < (std::int64_t{1} << 31), "attention: fewer than 2^31 blocks");
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
  kernel<<<static_cast<unsigned>(blocks), threads, static_cast<std::size_t>(shared_bytes),
           device::native(stream)>>>(params...);
}

}  // namespace ridge::kernels::cuda
