#include "kernels/copy.h"

#include <algorithm>
#include <limits>

#include "core/base/cuda.h"
#include "kernels/device/strided.cuh"

namespace ridge::kernels::cuda {
namespace {

using device::load;
using device::Loops;
using device::round_to;

struct Same {
  template <class T>
  __device__ __forceinline__ void operator()(const T& x, T& y) const {
    y = x;
  }
};

struct Rounded {
  template <class S, class D>
  __device__ __forceinline__ void operator()(const S& x, D& y) const {
    y = round_to<D>(load(x));
  }
};

/// A view of memory whose type was known at run time.
struct Side {
  const void* data;
  const Shape& shape;
  const Strides& strides;

  template <class T>
  View<const T> in() const {
    return {static_cast<const T*>(data), shape, strides};
  }
  template <class T>
  View<T> out() const {
    return {static_cast<T*>(const_cast<void*>(data)), shape, strides};
  }
};

/// A value of any dtype, exactly.
struct Number {
  bool whole;
  double real;
  std::int64_t integer;

  __device__ __forceinline__ double as_double() const { return whole ? static_cast<double>(integer) : real; }
  __device__ __forceinline__ float as_float() const {
    return whole ? static_cast<float>(integer) : static_cast<float>(real);
  }
  /// Truncates towards zero and saturates; NaN gives 0.
  template <class D>
  __device__ __forceinline__ D as_integer() const {
    using Limits = std::numeric_limits<D>;
    std::int64_t value = integer;
    if (!whole) {
      constexpr double kAbove = 9223372036854775808.0;  // 2^63
      if (real != real) return 0;
      if (real >= kAbove) return Limits::max();
      if (real <= -kAbove) return Limits::min();
      value = static_cast<std::int64_t>(real);
    }
    if (value > static_cast<std::int64_t>(Limits::max())) return Limits::max();
    if (value < static_cast<std::int64_t>(Limits::min())) return Limits::min();
    return static_cast<D>(value);
  }
};

__device__ __forceinline__ Number real(double value) { return {false, value, 0}; }
__device__ __forceinline__ Number integer(std::int64_t value) { return {true, 0, value}; }

__device__ __forceinline__ Number read(const void* x, std::int64_t at, DType dtype) {
  switch (dtype) {
    case DType::f32:
      return real(static_cast<const float*>(x)[at]);
    case DType::f64:
      return real(static_cast<const double*>(x)[at]);
    case DType::bf16:
      return real(load(static_cast<const bf16*>(x)[at]));
    case DType::f16:
      return real(load(static_cast<const f16*>(x)[at]));
    case DType::i32:
      return integer(static_cast<const std::int32_t*>(x)[at]);
    case DType::i64:
      return integer(static_cast<const std::int64_t*>(x)[at]);
    case DType::u8:
      return integer(static_cast<const std::uint8_t*>(x)[at]);
    case DType::i8:
      return integer(static_cast<const std::int8_t*>(x)[at]);
  }
  return integer(0);
}

__device__ __forceinline__ void write(void* y, std::int64_t at, DType dtype, Number value) {
  switch (dtype) {
    case DType::f32:
      static_cast<float*>(y)[at] = value.as_float();
      return;
    case DType::f64:
      static_cast<double*>(y)[at] = value.as_double();
      return;
    case DType::bf16:
      static_cast<bf16*>(y)[at] = round_to<bf16>(value.as_float());
      return;
    case DType::f16:
      static_cast<f16*>(y)[at] = round_to<f16>(value.as_float());
      return;
    case DType::i32:
      static_cast<std::int32_t*>(y)[at] = value.as_integer<std::int32_t>();
      return;
    case DType::i64:
      static_cast<std::int64_t*>(y)[at] = value.as_integer<std::int64_t>();
      return;
    case DType::u8:
      static_cast<std::uint8_t*>(y)[at] = value.as_integer<std::uint8_t>();
      return;
    case DType::i8:
      static_cast<std::int8_t*>(y)[at] = value.as_integer<std::int8_t>();
      return;
  }
}

/// All pairs of dtypes by one kernel, for conversions that are rare.
__global__ void __launch_bounds__(device::kThreads)
    any_kernel(const __grid_constant__ Loops<2> loops, DType from, const void* x, DType to, void* y) {
  const std::int64_t index = std::int64_t{blockIdx.x} * device::kThreads + threadIdx.x;
  if (index >= loops.count) return;
  std::int64_t at[2];
  loops.offsets(index, at);
  write(y, at[1], to, read(x, at[0], from));
}

constexpr int kTile = 32;
constexpr int kTileRows = 8;  // of threads

/// y[r][c] = x[c][r] in every plane, through tiles: both sides are touched in runs. x is dense along r.
template <class T>
__global__ void __launch_bounds__(kTile* kTileRows)
    transpose_kernel(const __grid_constant__ Loops<2> planes, std::int64_t rows, std::int64_t columns,
                     const T* x, std::int64_t x_column, T* y, std::int64_t y_row, std::int64_t y_column) {
  __shared__ T tile[kTile][kTile + 1];
  const std::int64_t across = (columns + kTile - 1) / kTile, down = (rows + kTile - 1) / kTile;
  const std::int64_t c0 = blockIdx.x % across * kTile, r0 = blockIdx.x / across % down * kTile;
  std::int64_t at[2];
  planes.offsets(blockIdx.x / across / down, at);
  const int tx = static_cast<int>(threadIdx.x) % kTile, ty = static_cast<int>(threadIdx.x) / kTile;
#pragma unroll
  for (int i = ty; i < kTile; i += kTileRows) {
    if (r0 + tx < rows && c0 + i < columns) tile[i][tx] = x[at[0] + r0 + tx + (c0 + i) * x_column];
  }
  __syncthreads();
#pragma unroll
  for (int i = ty; i < kTile; i += kTileRows) {
    if (r0 + i < rows && c0 + tx < columns) y[at[1] + (r0 + i) * y_row + (c0 + tx) * y_column] = tile[tx][i];
  }
}

/// The dimension other than the last along which x is dense, where its rows are not; else -1.
int transposed_dim(const Side& x, const Side& y) {
  const auto wide = [&](int d) { return x.shape[d] >= kTileRows; };
  if (x.shape.ndim() < 2 || x.strides[-1] == 1 || x.strides[-1] == 0 || y.strides[-1] != 1 || !wide(-1))
    return -1;
  for (int d = 0; d + 1 < x.shape.ndim(); ++d) {
    if (x.strides[d] == 1 && wide(d)) return d;
  }
  return -1;
}

template <class T>
void transpose(Stream& stream, const Side& x, const Side& y, int dense) {
  Loops<2> planes;
  for (int d = 0; d + 1 < x.shape.ndim(); ++d) {
    if (d != dense) planes.push(x.shape[d], {x.strides[d], y.strides[d]});
  }
  planes.close();
  const std::int64_t rows = x.shape[dense], columns = x.shape[-1];
  const std::int64_t tiles = device::ceil_div(rows, kTile) * device::ceil_div(columns, kTile) * planes.count;
  transpose_kernel<<<device::grid_for(tiles, 1), kTile * kTileRows, 0, device::native(stream)>>>(
      planes, rows, columns, x.in<T>().data, x.strides[-1], y.out<T>().data, y.strides[dense], y.strides[-1]);
}

template <class T>
void copy(Stream& stream, const Side& x, const Side& y) {
  const Loops<2> loops(x.shape, {x.strides, y.strides});
  if (loops.ndim == 1 && loops.step(0) == 1 && loops.step(1) == 1)
    return ridge::cuda::copy(y.out<T>().data, x.data, loops.count * static_cast<std::int64_t>(sizeof(T)),
                             stream);
  const int dense = transposed_dim(x, y);
  if (dense >= 0) return transpose<T>(stream, x, y, dense);
  device::map(stream, Same{}, x.in<T>(), y.out<T>());
}

void copy_elements(Stream& stream, std::size_t size, const Side& x, const Side& y) {
  if (x.data == y.data && x.strides == y.strides) return;
  if (size == 1) return copy<std::uint8_t>(stream, x, y);
  if (size == 2) return copy<std::uint16_t>(stream, x, y);
  if (size == 4) return copy<std::uint32_t>(stream, x, y);
  copy<std::uint64_t>(stream, x, y);
}

template <class S, class D>
void round_elements(Stream& stream, const Side& x, const Side& y) {
  device::map(stream, Rounded{}, x.in<S>(), y.out<D>());
}

void convert_any(Stream& stream, DType from, const Side& x, DType to, const Side& y) {
  const Loops<2> loops(x.shape, {x.strides, y.strides});
  const unsigned blocks = device::grid_for(loops.count, device::kThreads);
  any_kernel<<<blocks, device::kThreads, 0, device::native(stream)>>>(loops, from, x.data, to,
                                                                      const_cast<void*>(y.data));
}

}  // namespace

void convert(Stream& stream, DType from, const void* x, const Shape& shape, const Strides& x_strides,
             DType to, void* y, const Strides& y_strides) {
  if (numel(shape) == 0) return;
  const Side in{x, shape, x_strides}, out{y, shape, y_strides};
  const auto is = [&](DType a, DType b) { return from == a && to == b; };
  if (from == to) return copy_elements(stream, size_of(from), in, out);
  if (is(DType::f32, DType::bf16)) return round_elements<float, bf16>(stream, in, out);
  if (is(DType::bf16, DType::f32)) return round_elements<bf16, float>(stream, in, out);
  if (is(DType::f32, DType::f16)) return round_elements<float, f16>(stream, in, out);
  if (is(DType::f16, DType::f32)) return round_elements<f16, float>(stream, in, out);
  if (is(DType::f16, DType::bf16)) return round_elements<f16, bf16>(stream, in, out);
  convert_any(stream, from, in, to, out);
}

}  // namespace ridge::kernels::cuda
