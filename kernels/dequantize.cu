// Codes back into values on the GPU: 8 elements of a row a thread where rows are whole eights, else one.
#include <algorithm>
#include <array>

#include "kernels/device/launch.cuh"
#include "kernels/device/vec.cuh"
#include "kernels/formats/codes.cuh"
#include "kernels/quantize.h"

namespace ridge::kernels::cuda {
namespace {

using device::kThreads;
using device::native;

constexpr int kEight = 8;
constexpr std::int64_t kMostGridRows = 65535;

/// nf4's or fp4's values.
struct Values {
  float at[16];
};

/// N codes from element i on, i a multiple of N, each in the low bits.
template <Codes kCodes, int N>
__device__ __forceinline__ void load_codes(const std::uint8_t* codes, std::int64_t i,
                                           std::uint32_t (&out)[N]) {
  constexpr bool kBytes = kCodes == Codes::int8 || kCodes == Codes::fp8;
  constexpr bool kLowFirst = kCodes == Codes::int4;
  if constexpr (N == 1) {
    const bool low = (i % 2 == 0) == kLowFirst;
    out[0] = kBytes ? codes[i] : (codes[i / 2] >> (low ? 0 : 4)) & 15u;
  } else if constexpr (kBytes) {
    const auto pack = *reinterpret_cast<const uint2*>(codes + i);
#pragma unroll
    for (int k = 0; k < N; ++k) out[k] = ((k < 4 ? pack.x : pack.y) >> (8 * (k % 4))) & 0xFFu;
  } else {
    const std::uint32_t pack = *reinterpret_cast<const std::uint32_t*>(codes + i / 2);
#pragma unroll
    for (int k = 0; k < N; ++k) out[k] = (pack >> (4 * (kLowFirst ? k : k ^ 1))) & 15u;
  }
}

/// The scale of element (row, col), number i of the view, and its zero point.
template <Codes kCodes>
__device__ __forceinline__ float scale_of_element(const QuantView& w, std::int64_t row, std::int64_t col,
                                                  std::int64_t i, int& zero) {
  if constexpr (kCodes == Codes::nf4 || kCodes == Codes::fp4) {
    const std::int64_t block = i / kFlatBlock;
    if (!w.format.double_quant) return static_cast<const float*>(w.scales)[block];
    const std::int64_t in_row = w.row_blocks > 0 ? row * w.row_blocks + col / kFlatBlock : block;
    return device::nested_scale(w, block, w.first_block + in_row);
  } else if constexpr (kCodes == Codes::int4) {
    const auto group = static_cast<std::uint32_t>(w.format.group);
    const auto groups = static_cast<std::uint32_t>(w.cols) / group;
    const std::int64_t at = row * groups + static_cast<std::uint32_t>(col) / group;
    if (w.format.zero_points) zero = w.zeros[at];
    return w.scale_dtype == DType::bf16 ? device::load(static_cast<const bf16*>(w.scales)[at])
                                        : static_cast<const float*>(w.scales)[at];
  } else {
    const std::int64_t across = (w.cols + kTile - 1) / kTile;
    return static_cast<const float*>(w.scales)[w.format.tiles ? row / kTile * across + col / kTile : row];
  }
}

template <Codes kCodes>
__device__ __forceinline__ float value_of(std::uint32_t code, int zero, const float* values) {
  if constexpr (kCodes == Codes::int8) return int8_value(code);
  if constexpr (kCodes == Codes::fp8) return fp8_value(code);
  if constexpr (kCodes == Codes::int4) return static_cast<float>(static_cast<int>(code) - zero);
  return values[code & 15u];
}

/// A row of blocks goes over one row of the matrix at a time.
template <Codes kCodes, class T, int N>
__global__ void __launch_bounds__(kThreads)
    dequantize_kernel(const __grid_constant__ QuantView w, const __grid_constant__ Values values, T* out_NK,
                      std::int64_t stride) {
  __shared__ float table[16];
  if (threadIdx.x < 16) table[threadIdx.x] = values.at[threadIdx.x];
  __syncthreads();
  const std::int64_t col = (std::int64_t{blockIdx.x} * kThreads + threadIdx.x) * N;
  if (col >= w.cols) return;
  for (std::int64_t row = blockIdx.y; row < w.rows; row += gridDim.y) {
    const std::int64_t i = row * w.cols + col;
    int zero = 8;
    const float scale = scale_of_element<kCodes>(w, row, col, i, zero);
    std::uint32_t codes[N];
    load_codes<kCodes, N>(w.codes, i, codes);
    device::Vec<T, N> y;
#pragma unroll
    for (int k = 0; k < N; ++k)
      y.at[k] = device::round_to<T>(static_cast<acc_t<T>>(value_of<kCodes>(codes[k], zero, table) * scale));
    device::store_vec(out_NK + row * stride + col, y);
  }
}

template <Codes kCodes, class T, int N>
void run(Stream& stream, const QuantView& w, const Values& values, const View<T>& out) {
  const dim3 grid(device::grid_for(w.cols, std::int64_t{kThreads} * N),
                  static_cast<unsigned>(std::min(w.rows, kMostGridRows)));
  const std::int64_t stride = w.rows == 1 ? w.cols : out.strides[0];
  dequantize_kernel<kCodes, T, N><<<grid, kThreads, 0, native(stream)>>>(w, values, out.data, stride);
}

template <Codes kCodes, class T>
void dequantize_codes(Stream& stream, const QuantView& w, const View<T>& out) {
  Values values{};
  constexpr std::array<float, 16> kValues = kCodes == Codes::nf4 ? nf4_values() : fp4_values();
  std::copy(kValues.begin(), kValues.end(), values.at);
  const std::int64_t stride = w.rows == 1 ? 0 : out.strides[0];
  const bool whole = w.cols % kEight == 0 && (kCodes != Codes::int4 || w.format.group % kEight == 0);
  const bool eights = whole && device::aligned_rows(out.data, stride, kEight) &&
                      reinterpret_cast<std::uintptr_t>(w.codes) % kEight == 0;
  if (eights) {
    run<kCodes, T, kEight>(stream, w, values, out);
  } else {
    run<kCodes, T, 1>(stream, w, values, out);
  }
}

__global__ void __launch_bounds__(kThreads)
    scales_kernel(const __grid_constant__ QuantView w, std::int64_t count, float* out_B) {
  const std::int64_t block = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (block >= count) return;
  std::int64_t whole = w.first_block + block;
  if (w.row_blocks > 0) {
    const std::int64_t each = w.cols / kFlatBlock;
    whole = w.first_block + block / each * w.row_blocks + block % each;
  }
  out_B[block] = device::nested_scale(w, block, whole);
}

}  // namespace

template <class T>
void dequantize(Stream& stream, const QuantView& w, View<T> out_NK) {
  if (out_NK.numel() == 0) return;
  switch (w.format.codes) {
    case Codes::int8:
      return dequantize_codes<Codes::int8>(stream, w, out_NK);
    case Codes::fp8:
      return dequantize_codes<Codes::fp8>(stream, w, out_NK);
    case Codes::int4:
      return dequantize_codes<Codes::int4>(stream, w, out_NK);
    case Codes::nf4:
      return dequantize_codes<Codes::nf4>(stream, w, out_NK);
    case Codes::fp4:
      return dequantize_codes<Codes::fp4>(stream, w, out_NK);
  }
}

template void dequantize<float>(Stream&, const QuantView&, View<float>);
template void dequantize<double>(Stream&, const QuantView&, View<double>);
template void dequantize<bf16>(Stream&, const QuantView&, View<bf16>);

void dequantize_scales(Stream& stream, const QuantView& w, View<float> out) {
  const std::int64_t count = out.numel();
  if (count == 0) return;
  scales_kernel<<<device::grid_for(count, kThreads), kThreads, 0, native(stream)>>>(w, count, out.data);
}

}  // namespace ridge::kernels::cuda
