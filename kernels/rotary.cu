// B batch, T tokens, H heads, D head dim, P rows of the tables.
#include <algorithm>

#include "kernels/device/launch.cuh"
#include "kernels/device/pack.cuh"
#include "kernels/rotary.h"

namespace ridge::kernels::cuda {
namespace {

using device::ceil_div, device::kThreads, device::kVec, device::load, device::Pack;

constexpr int kHeads = 4;  // heads that a thread rotates by angles that it has loaded once

template <class T>
struct Operands {
  const T* x_BTHD;
  T* y_BTHD;
  const float *cos_PD2, *sin_PD2;
  const std::int32_t* positions_BT;  // null: token t has row t
  std::int64_t x_stride[3], y_stride[3], cos_stride, sin_stride, position_stride[2];
  std::int64_t batch, tokens, table_rows;
  int heads, half;
  float sign;
};

/// N elements that move as one: 16 bytes, or a single element where rows are not aligned.
template <class T, int N>
struct Piece {
  Pack<T> pack;
  __device__ __forceinline__ void load_from(const T* from) { pack = device::load_pack(from); }
  __device__ __forceinline__ acc_t<T> operator[](int k) const { return pack[k]; }
  static __device__ __forceinline__ void store(T* to, const acc_t<T> (&x)[N]) {
    device::store_pack(to, Pack<T>::of(x));
  }
};
template <class T>
struct Piece<T, 1> {
  T value;
  __device__ __forceinline__ void load_from(const T* from) { value = *from; }
  __device__ __forceinline__ acc_t<T> operator[](int) const { return load(value); }
  static __device__ __forceinline__ void store(T* to, const acc_t<T> (&x)[1]) {
    *to = device::round_to<T>(x[0]);
  }
};

template <int N>
__device__ __forceinline__ void load_angles(float (&into)[N], const float* from) {
  if constexpr (N % 4 == 0) {
#pragma unroll
    for (int k = 0; k < N; k += 4) {
      const float4 four = *reinterpret_cast<const float4*>(from + k);
      into[k] = four.x, into[k + 1] = four.y, into[k + 2] = four.z, into[k + 3] = four.w;
    }
  } else {
#pragma unroll
    for (int k = 0; k < N; ++k) into[k] = from[k];
  }
}

/// Elements j.. and j + D/2.. of kHeads heads of one token. x and y may be the same: all is read before the
/// first store.
template <class T, int N>
__device__ __forceinline__ void rotate(const Operands<T>& o, const T* x, T* y, std::int64_t row, int head,
                                       int j) {
  using A = acc_t<T>;
  Piece<T, N> first[kHeads], second[kHeads];
#pragma unroll
  for (int u = 0; u < kHeads; ++u) {
    if (head + u >= o.heads) continue;
    const T* from = x + (head + u) * o.x_stride[2] + j;
    first[u].load_from(from);
    second[u].load_from(from + o.half);
  }
  float cos[N], sin[N];
  load_angles(cos, o.cos_PD2 + row * o.cos_stride + j);
  load_angles(sin, o.sin_PD2 + row * o.sin_stride + j);
#pragma unroll
  for (int k = 0; k < N; ++k) sin[k] *= o.sign;
#pragma unroll
  for (int u = 0; u < kHeads; ++u) {
    if (head + u >= o.heads) continue;
    A low[N], high[N];
#pragma unroll
    for (int k = 0; k < N; ++k) {
      const A c = static_cast<A>(cos[k]), s = static_cast<A>(sin[k]);
      low[k] = first[u][k] * c - second[u][k] * s;
      high[k] = second[u][k] * c + first[u][k] * s;
    }
    T* to = y + (head + u) * o.y_stride[2] + j;
    Piece<T, N>::store(to, low);
    Piece<T, N>::store(to + o.half, high);
  }
}

/// A block takes `chunk` tokens of one sequence at a time.
template <class T, int N>
__global__ void __launch_bounds__(kThreads) rotary_kernel(Operands<T> o, int chunk) {
  const int pieces = o.half / N, per_token = pieces * ((o.heads + kHeads - 1) / kHeads);
  for (std::int64_t b = blockIdx.y; b < o.batch; b += gridDim.y) {
    for (std::int64_t begin = static_cast<std::int64_t>(blockIdx.x) * chunk; begin < o.tokens;
         begin += static_cast<std::int64_t>(gridDim.x) * chunk) {
      const int count = static_cast<int>(min(static_cast<std::int64_t>(chunk), o.tokens - begin));
      for (int i = static_cast<int>(threadIdx.x); i < count * per_token; i += static_cast<int>(blockDim.x)) {
        const int local = i / per_token, rest = i - local * per_token, group = rest / pieces;
        const std::int64_t t = begin + local;
        std::int64_t row = t;
        if (o.positions_BT != nullptr)
          row = o.positions_BT[b * o.position_stride[0] + t * o.position_stride[1]];
        if (row < 0 || row >= o.table_rows) continue;  // bad input: y keeps what it holds
        rotate<T, N>(o, o.x_BTHD + b * o.x_stride[0] + t * o.x_stride[1],
                     o.y_BTHD + b * o.y_stride[0] + t * o.y_stride[1], row, group * kHeads,
                     (rest - group * pieces) * N);
      }
    }
  }
}

template <class T, int N>
void run(Stream& stream, const Operands<T>& o) {
  const std::int64_t per_token = o.half / N * ceil_div(o.heads, kHeads);
  const std::int64_t chunk = std::clamp<std::int64_t>(kThreads / per_token, 1, o.tokens);
  const std::int64_t threads = std::min<std::int64_t>(kThreads, ceil_div(chunk * per_token, 32) * 32);
  const dim3 grid(device::grid_for(o.tokens, chunk), device::grid_for(o.batch, 1, 65535));
  rotary_kernel<T, N>
      <<<grid, static_cast<unsigned>(threads), 0, device::native(stream)>>>(o, static_cast<int>(chunk));
}

/// Whether every row of the view begins at a multiple of 16 bytes.
template <class T>
bool in_vectors(const View<T>& view) {
  bool all = device::aligned_rows(view.data, 0);
  for (int d = 0; d + 1 < view.ndim(); ++d) all = all && (view.dim(d) == 1 || view.strides[d] % kVec<T> == 0);
  return all;
}

}  // namespace

template <class T>
void rotary(Stream& stream, View<const T> x, View<const float> cos, View<const float> sin,
            View<const std::int32_t> positions, View<T> y, bool inverse) {
  if (x.numel() == 0) return;
  const bool given = positions.ndim() != 0;
  const Operands<T> o{x.data,
                      y.data,
                      cos.data,
                      sin.data,
                      given ? positions.data : nullptr,
                      {x.strides[0], x.strides[1], x.strides[2]},
                      {y.strides[0], y.strides[1], y.strides[2]},
                      cos.strides[0],
                      sin.strides[0],
                      {given ? positions.strides[0] : 0, given ? positions.strides[1] : 0},
                      x.dim(0),
                      x.dim(1),
                      cos.dim(0),
                      static_cast<int>(x.dim(2)),
                      static_cast<int>(x.dim(3) / 2),
                      inverse ? -1.0f : 1.0f};
  const bool vectors = o.half % kVec<T> == 0 && in_vectors(x) && in_vectors(View<const T>(y)) &&
                       in_vectors(cos) && in_vectors(sin);
  vectors ? run<T, kVec<T>>(stream, o) : run<T, 1>(stream, o);
}

template void rotary(Stream&, View<const float>, View<const float>, View<const float>,
                     View<const std::int32_t>, View<float>, bool);
template void rotary(Stream&, View<const double>, View<const float>, View<const float>,
                     View<const std::int32_t>, View<double>, bool);
template void rotary(Stream&, View<const bf16>, View<const float>, View<const float>,
                     View<const std::int32_t>, View<bf16>, bool);

}  // namespace ridge::kernels::cuda
