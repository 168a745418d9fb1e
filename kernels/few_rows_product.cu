// A warp makes one column of y for a few rows: w is read once for those, x comes from the caches.
#include "kernels/few_rows_product.h"

#include "core/base/cuda_check.h"
#include "kernels/device/block.cuh"
#include "kernels/device/launch.cuh"

namespace ridge::kernels::cuda {
namespace {

constexpr int kRows = 8;  // of a warp
constexpr int kWarps = device::kThreads / device::kWarp;

struct FewRowsParams {
  const float* x;  // [M, K]
  const float* w;  // [N, K]
  float* y;        // [M, N]
  std::int64_t x_stride, w_stride, y_stride;
  int m, n, k;
};

__global__ void few_rows_kernel(const __grid_constant__ FewRowsParams p) {
  const int lane = static_cast<int>(threadIdx.x) % device::kWarp;
  const int column = static_cast<int>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x) / device::kWarp;
  const int first = static_cast<int>(blockIdx.y) * kRows, rows = min(kRows, p.m - first);
  if (column >= p.n) return;
  const float* w = p.w + column * p.w_stride;
  const float* x = p.x + first * p.x_stride;
  float sum[kRows] = {};
#pragma unroll 4
  for (int k = lane; k < p.k; k += device::kWarp) {
    const float weight = __ldg(w + k);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (r < rows) sum[r] = fmaf(__ldg(x + r * p.x_stride + k), weight, sum[r]);
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const float total = device::warp_all<device::Sum>(sum[r]);
    if (lane == 0 && r < rows) p.y[(first + r) * p.y_stride + column] = total;
  }
}

}  // namespace

void few_rows_product(Stream& stream, View<const float> x, View<const float> w, View<float> y) {
  if (y.numel() == 0) return;
  const FewRowsParams p{x.data,
                        w.data,
                        y.data,
                        x.strides[0],
                        w.strides[0],
                        y.strides[0],
                        static_cast<int>(x.dim(0)),
                        static_cast<int>(w.dim(0)),
                        static_cast<int>(w.dim(1))};
  const dim3 grid(device::grid_for(p.n, kWarps), device::grid_for(p.m, kRows));
  few_rows_kernel<<<grid, device::kThreads, 0, device::native(stream)>>>(p);
  check_cuda(cudaGetLastError());
}

}  // namespace ridge::kernels::cuda
