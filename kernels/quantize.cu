// Rounding to nearest on the GPU, with the CPU's bits: codes.h has the arithmetic, and greatest magnitudes
// are found in integers.
#include "kernels/quantize.h"

#include "core/base/memory.h"
#include "kernels/device/block.cuh"
#include "kernels/device/launch.cuh"
#include "kernels/device/vec.cuh"
#include "kernels/formats/codes.h"
#include "kernels/quantize_nested.cuh"

namespace ridge::kernels::cuda {
namespace {

using device::kThreads;
using device::kWarp;
using device::native;

constexpr int kWarps = kThreads / kWarp;

/// A matrix [N, K] with dense rows.
template <class T>
struct Rows {
  const T* data;
  std::int64_t rows, cols, stride;

  explicit Rows(const View<const T>& w)
      : data(w.data), rows(w.dim(0)), cols(w.dim(1)), stride(w.dim(0) == 1 ? w.dim(1) : w.strides[0]) {}
  __device__ __forceinline__ float at(std::int64_t row, std::int64_t col) const {
    return device::load(data[row * stride + col]);
  }
  /// Element i, counted through.
  __device__ __forceinline__ float flat(std::int64_t i) const {
    return stride == cols ? device::load(data[i]) : at(i / cols, i % cols);
  }
};

/// int8 and fp8: a block for each rectangle [rows_each, cols_each] of a band of `across` of them.
template <Codes kCodes, class T>
__global__ void __launch_bounds__(kThreads)
    bytes_kernel(Rows<T> w, std::int64_t rows_each, std::int64_t cols_each, std::int64_t across,
                 std::uint8_t* codes_NK, float* scales) {
  __shared__ std::uint32_t shared[33];
  const std::int64_t rectangle = blockIdx.x;
  const std::int64_t r0 = rectangle / across * rows_each, c0 = rectangle % across * cols_each;
  const std::int64_t height = min(rows_each, w.rows - r0), width = min(cols_each, w.cols - c0);
  std::uint32_t most = 0;
  for (std::int64_t i = threadIdx.x; i < height * width; i += kThreads)
    most = max(most, magnitude_bits(w.at(r0 + i / width, c0 + i % width)));
  most = device::block_all<device::Max>(most, shared, 0u);
  const float scale = scale_of(most, kCodes == Codes::int8 ? kInt8Divisor : kFp8Divisor);
  if (threadIdx.x == 0) scales[rectangle] = scale;
  for (std::int64_t i = threadIdx.x; i < height * width; i += kThreads) {
    const std::int64_t row = r0 + i / width, col = c0 + i % width;
    const float value = w.at(row, col) / scale;
    const std::uint32_t code = kCodes == Codes::int8 ? int8_code(value) : fp8_code(value);
    codes_NK[row * w.cols + col] = static_cast<std::uint8_t>(code);
  }
}

/// int4: a warp for each group. S: float or bf16.
template <class T, class S>
__global__ void __launch_bounds__(kThreads)
    int4_kernel(Rows<T> w, int group, bool zero_points, std::uint8_t* codes, S* scales, std::uint8_t* zeros) {
  const std::int64_t at = std::int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp, groups = w.cols / group;
  if (at >= w.rows * groups) return;  // whole warps
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const std::int64_t row = at / groups, first = at % groups * group;
  std::uint32_t most = 0;
  float least = 0, greatest = 0;
  for (int i = lane; i < group; i += kWarp) {
    const float x = w.at(row, first + i);
    most = max(most, magnitude_bits(x));
    least = x < least ? x : least;
    greatest = x > greatest ? x : greatest;
  }
  most = device::warp_all<device::Max>(most);
  least = -device::warp_all<device::Max>(-least);
  greatest = device::warp_all<device::Max>(greatest);
  constexpr bool kNarrow = sizeof(S) == 2;
  const float scale = kept_scale(
      zero_points ? asymmetric_scale(most, least, greatest) : scale_of(most, kInt4Divisor), kNarrow);
  const std::uint32_t zero_code = zero_points ? int4_zero(least, scale) : 8u;
  const float zero = static_cast<float>(static_cast<int>(zero_code) - 8);
  if (lane == 0) {
    scales[at] = device::round_to<S>(scale);
    if (zero_points) zeros[at] = static_cast<std::uint8_t>(zero_code);
  }
  for (int i = 2 * lane; i < group; i += 2 * kWarp) {
    const std::uint32_t low = int4_code(w.at(row, first + i) / scale, zero);
    const std::uint32_t high = int4_code(w.at(row, first + i + 1) / scale, zero);
    codes[(at * group + i) / 2] = static_cast<std::uint8_t>(low | high << 4);
  }
}

/// nf4 and fp4: a warp for each block of 64, a byte a lane.
template <Codes kCodes, class T>
__global__ void __launch_bounds__(kThreads)
    flat_kernel(Rows<T> w, std::int64_t count, std::uint8_t* codes, float* absmax) {
  static_assert(kFlatBlock == 2 * kWarp);
  const std::int64_t block = std::int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp;
  if (block * kFlatBlock >= count) return;  // whole warps
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const std::int64_t i = block * kFlatBlock + 2 * lane;
  const float first = i < count ? w.flat(i) : 0.0f, second = i + 1 < count ? w.flat(i + 1) : 0.0f;
  const std::uint32_t most =
      device::warp_all<device::Max>(max(magnitude_bits(first), magnitude_bits(second)));
  const float greatest = __uint_as_float(most), inverse = inverse_of(greatest);
  const auto code = [inverse](float x) {
    return kCodes == Codes::nf4 ? nf4_code(x * inverse) : fp4_code(x * inverse);
  };
  if (lane == 0) absmax[block] = greatest;
  if (i < count) codes[i / 2] = static_cast<std::uint8_t>(code(first) << 4 | code(second));
}

template <Codes kCodes, class T>
void quantize_bytes(Stream& stream, const Rows<T>& w, const QuantTarget& out) {
  const std::int64_t rows_each = out.format.tiles ? out.format.group : 1;
  const std::int64_t cols_each = out.format.group == 0 ? w.cols : out.format.group;
  const std::int64_t across = device::ceil_div(w.cols, cols_each);
  const unsigned blocks = device::grid_for(device::ceil_div(w.rows, rows_each) * across, 1);
  bytes_kernel<kCodes, T><<<blocks, kThreads, 0, native(stream)>>>(w, rows_each, cols_each, across, out.codes,
                                                                   static_cast<float*>(out.scales));
}

template <class S, class T>
void quantize_int4(Stream& stream, const Rows<T>& w, const QuantTarget& out) {
  const unsigned blocks = device::grid_for(w.rows * (w.cols / out.format.group), kWarps);
  int4_kernel<T, S><<<blocks, kThreads, 0, native(stream)>>>(w, static_cast<int>(out.format.group),
                                                             out.format.zero_points, out.codes,
                                                             static_cast<S*>(out.scales), out.zeros);
}

template <class T>
void quantize_flat(Stream& stream, const Rows<T>& w, const QuantTarget& out, float* absmax) {
  const std::int64_t count = w.rows * w.cols;
  const unsigned blocks = device::grid_for(device::ceil_div(count, kFlatBlock), kWarps);
  if (out.format.codes == Codes::nf4) {
    flat_kernel<Codes::nf4, T><<<blocks, kThreads, 0, native(stream)>>>(w, count, out.codes, absmax);
  } else {
    flat_kernel<Codes::fp4, T><<<blocks, kThreads, 0, native(stream)>>>(w, count, out.codes, absmax);
  }
}

}  // namespace

template <class T>
void quantize(Stream& stream, View<const T> w_NK, const QuantTarget& out) {
  const Rows<T> w(w_NK);
  const std::int64_t scales = scale_count(out.format, out.rows, out.cols);
  if (w_NK.numel() == 0 && !out.format.double_quant) return;
  if (out.format.codes == Codes::int8) return quantize_bytes<Codes::int8>(stream, w, out);
  if (out.format.codes == Codes::fp8) return quantize_bytes<Codes::fp8>(stream, w, out);
  if (out.format.codes == Codes::int4) {
    return out.scale_dtype == DType::bf16 ? quantize_int4<bf16>(stream, w, out)
                                          : quantize_int4<float>(stream, w, out);
  }
  if (!out.format.double_quant) return quantize_flat(stream, w, out, static_cast<float*>(out.scales));
  const Storage scratch(Device::cuda, scales * static_cast<std::int64_t>(sizeof(float)));
  auto* absmax = static_cast<float*>(scratch.data());
  if (scales > 0) quantize_flat(stream, w, out, absmax);
  quantize_scales(stream, absmax, scales, out);
}

template void quantize<float>(Stream&, View<const float>, const QuantTarget&);
template void quantize<bf16>(Stream&, View<const bf16>, const QuantTarget&);

}  // namespace ridge::kernels::cuda
