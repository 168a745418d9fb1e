// A warp has a row of w and eight rows of x; its lanes take columns in turn. Weights are made as dequantize
// makes them, in f32.
#include "kernels/device/block.cuh"
#include "kernels/device/launch.cuh"
#include "kernels/device/vec.cuh"
#include "kernels/formats/codes.cuh"
#include "kernels/quant_gemv_cuda.h"

namespace ridge::kernels::cuda {
namespace {

constexpr int kRows = 8;  // of x
constexpr int kWarps = 8;

struct Values {
  float at[16];
};

/// Codes of a row, and its scales.
template <Codes kCodes>
struct Row {
  static constexpr int kBits = kCodes == Codes::int8 || kCodes == Codes::fp8 ? 8 : 4;
  const QuantView& w;
  const float* values;
  const std::uint8_t* codes;
  std::int64_t row, scales;  // the first of the row's

  __device__ Row(const QuantView& view, const float* table, std::int64_t n) : w(view), values(table), row(n) {
    codes = w.codes + n * (w.cols * kBits / 8);
    const std::int64_t group = w.format.group;
    const std::int64_t across = group == 0 ? 1 : (w.cols + group - 1) / group;
    scales = (w.format.tiles ? n / group : n) * across;
  }
  __device__ float scale(int group) const {
    const std::int64_t at = scales + group;
    if (w.format.double_quant) {
      const std::int64_t whole = w.first_block + row * w.row_blocks + group;
      return device::nested_scale(w, at, whole);
    }
    return w.scale_dtype == DType::bf16 ? device::load(static_cast<const bf16*>(w.scales)[at])
                                        : static_cast<const float*>(w.scales)[at];
  }
  __device__ float value(int k) const {
    const int group = w.format.group == 0 ? 0 : k / static_cast<int>(w.format.group);
    if constexpr (kCodes == Codes::int8) return int8_value(codes[k]) * scale(group);
    if constexpr (kCodes == Codes::fp8) return fp8_value(codes[k]) * scale(group);
    constexpr bool kLowFirst = kCodes == Codes::int4;
    const int code = codes[k / 2] >> ((k % 2 == 0) == kLowFirst ? 0 : 4) & 15;
    if constexpr (kCodes != Codes::int4) return values[code] * scale(group);
    const int zero = w.format.zero_points ? w.zeros[scales + group] : 8;
    return static_cast<float>(code - zero) * scale(group);
  }
};

template <Codes kCodes, class T>
__global__ void __launch_bounds__(32 * kWarps)
    quant_gemv_kernel(const T* x_MK, std::int64_t x_stride, int m, const __grid_constant__ QuantView w,
                      const __grid_constant__ Values values, T* y_MN, std::int64_t y_stride) {
  __shared__ float table[16];
  if (threadIdx.x < 16) table[threadIdx.x] = values.at[threadIdx.x];
  __syncthreads();
  const int lane = static_cast<int>(threadIdx.x) % 32, columns = static_cast<int>(w.cols);
  const std::int64_t n = std::int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (n >= w.rows) return;
  const int first = static_cast<int>(blockIdx.y) * kRows;
  const Row<kCodes> row(w, table, n);
  float sum[kRows] = {};
  for (int k = lane; k < columns; k += 32) {
    const float value = row.value(k);
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      if (first + i < m) sum[i] = fmaf(device::load(x_MK[(first + i) * x_stride + k]), value, sum[i]);
    }
  }
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const float total = device::warp_all<device::Sum>(sum[i]);
    if (lane == 0 && first + i < m) y_MN[(first + i) * y_stride + n] = device::round_to<T>(total);
  }
}

template <Codes kCodes, class T>
void start(Stream& stream, const View<const T>& x, const QuantView& w, const View<T>& y,
           const Values& values) {
  const auto m = static_cast<int>(x.dim(0));
  const dim3 grid(device::grid_for(w.rows, kWarps), static_cast<unsigned>(device::ceil_div(m, kRows)));
  const std::int64_t x_stride = m == 1 ? 0 : x.strides[0], y_stride = m == 1 ? 0 : y.strides[0];
  quant_gemv_kernel<kCodes, T>
      <<<grid, 32 * kWarps, 0, device::native(stream)>>>(x.data, x_stride, m, w, values, y.data, y_stride);
}

}  // namespace

template <class T>
void quant_gemv(Stream& stream, const View<const T>& x_MK, const QuantView& w, const View<T>& y_MN) {
  Values values{};
  const auto table = w.format.codes == Codes::nf4 ? nf4_values() : fp4_values();
  std::copy(table.begin(), table.end(), values.at);
  switch (w.format.codes) {
    case Codes::int8:
      return start<Codes::int8>(stream, x_MK, w, y_MN, values);
    case Codes::fp8:
      return start<Codes::fp8>(stream, x_MK, w, y_MN, values);
    case Codes::int4:
      return start<Codes::int4>(stream, x_MK, w, y_MN, values);
    case Codes::nf4:
      return start<Codes::nf4>(stream, x_MK, w, y_MN, values);
    case Codes::fp4:
      return start<Codes::fp4>(stream, x_MK, w, y_MN, values);
  }
}

template void quant_gemv<float>(Stream&, const View<const float>&, const QuantView&, const View<float>&);
template void quant_gemv<bf16>(Stream&, const View<const bf16>&, const QuantView&, const View<bf16>&);

}  // namespace ridge::kernels::cuda
