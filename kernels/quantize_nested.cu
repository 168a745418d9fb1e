// B block scales as 8-bit codes: their mean in the order that quantize_nested.h states, then blocks of 256.
#include "kernels/quantize_nested.cuh"

#include <algorithm>

#include "core/base/memory.h"
#include "kernels/device/block.cuh"
#include "kernels/device/launch.cuh"
#include "kernels/formats/codes.h"
#include "kernels/quantize_nested.h"

namespace ridge::kernels::cuda {
namespace {

using device::native;

struct Map {
  float at[256];
};

/// A block for each part: sums [P].
__global__ void __launch_bounds__(kMeanLanes)
    sum_parts_kernel(const float* x_B, std::int64_t count, double* sums_P) {
  __shared__ double lanes[kMeanLanes];
  const int lane = static_cast<int>(threadIdx.x);
  const std::int64_t first = std::int64_t{blockIdx.x} * kMeanPart, last = min(count, first + kMeanPart);
  double sum = 0;
  for (std::int64_t i = first + lane; i < last; i += kMeanLanes) sum += static_cast<double>(x_B[i]);
  lanes[lane] = sum;
  for (int width = kMeanLanes / 2; width > 0; width /= 2) {
    __syncthreads();
    if (lane < width) lanes[lane] += lanes[lane + width];
  }
  if (lane == 0) sums_P[blockIdx.x] = lanes[0];
}

/// One block of 256 threads.
__global__ void mean_kernel(const double* sums_P, std::int64_t parts, std::int64_t count,
                            const __grid_constant__ Map map, float* out_map, float* offset) {
  out_map[threadIdx.x] = map.at[threadIdx.x];
  if (threadIdx.x != 0) return;
  double total = 0;
#pragma unroll 8
  for (std::int64_t p = 0; p < parts; ++p) total += sums_P[p];
  *offset = count == 0 ? 0.0f : static_cast<float>(total / static_cast<double>(count));
}

/// A block of 256 threads for each 256 scales.
__global__ void __launch_bounds__(kNestedBlock)
    encode_kernel(const float* scales_B, std::int64_t count, const float* map_256, const float* offset,
                  std::uint8_t* codes_B, float* nested_scales) {
  __shared__ float thresholds[kNestedBlock];
  __shared__ std::uint32_t shared[33];
  if (threadIdx.x < 255)
    thresholds[threadIdx.x] = map_threshold(map_256[threadIdx.x], map_256[threadIdx.x + 1]);
  const std::int64_t i = std::int64_t{blockIdx.x} * kNestedBlock + threadIdx.x;
  const float x = i < count ? __fsub_rn(scales_B[i], *offset) : 0.0f;
  const float absmax = __uint_as_float(
      device::block_all<device::Max>(magnitude_bits(x), shared, 0u));  // thresholds are there after it
  if (threadIdx.x == 0) nested_scales[blockIdx.x] = absmax;
  if (i < count)
    codes_B[i] = static_cast<std::uint8_t>(nearest_in_map(thresholds, __fmul_rn(x, inverse_of(absmax))));
}

}  // namespace

void quantize_scales(Stream& stream, const float* scales_B, std::int64_t count, const QuantTarget& out) {
  static_assert(kMeanLanes == 256 && kNestedBlock == 256);
  Map map;
  std::copy(dynamic_map().begin(), dynamic_map().end(), map.at);
  const std::int64_t parts = device::ceil_div(count, kMeanPart);
  const Storage scratch(Device::cuda,
                        std::max<std::int64_t>(1, parts) * static_cast<std::int64_t>(sizeof(double)));
  auto* sums_P = static_cast<double*>(scratch.data());
  if (count > 0)
    sum_parts_kernel<<<device::grid_for(parts, 1), kMeanLanes, 0, native(stream)>>>(scales_B, count, sums_P);
  mean_kernel<<<1, 256, 0, native(stream)>>>(sums_P, parts, count, map, out.nested_map, out.nested_offset);
  if (count == 0) return;
  const unsigned blocks = device::grid_for(count, kNestedBlock);
  encode_kernel<<<blocks, kNestedBlock, 0, native(stream)>>>(
      scales_B, count, out.nested_map, out.nested_offset, out.scale_codes, out.nested_scales);
}

}  // namespace ridge::kernels::cuda
