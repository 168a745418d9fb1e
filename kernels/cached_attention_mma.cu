// A few rows of a key-value head over a cache, on tensor cores: they fill a 16-row operand, so that
// arithmetic hides behind the reads. Each warp has a ring of tiles that it alone fills and drains.
#include "core/base/cuda_check.h"
#include "kernels/cached_attention_mma.cuh"

namespace ridge::kernels::cuda {
namespace {

template <class Rows, int kDim>
__device__ __forceinline__ void write_warp(const Rows& rows, const WarpResults& to) {
#pragma unroll
  for (int half = 0; half < Rows::kHalves; ++half) {
    const int row = warp_id() * kCachedRows + lane_id() / 4 + 8 * half;
    const float total = rows.total(half);
    if (lane_id() % 4 == 0) to.maximum[row] = rows.maximum[half], to.sum[row] = total;
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
      for (int i = 2 * half; i < 2 * half + 2; ++i)
        to.sums[row * kDim + Rows::column(n, i)] = rows.sums[n][i];
    }
  }
}

template <class K, int kDim, bool kUpper>
__global__ void __launch_bounds__(kCachedThreads, 2)
    attend_mma(const __grid_constant__ CachedParams<bf16> p) {
  using R = Ring<K, kDim>;
  extern __shared__ __align__(128) unsigned char memory[];
  const CachedBlock<bf16> at(p, kCachedRows);
  if (at.part >= at.parts) {
    if (at.parts == 0 && at.part == 0) write_zeros(at);
    return;
  }
  const R ring{shared_address(memory) + static_cast<unsigned>(warp_id() * R::kBytes)};
  const Source<K, kDim> source(at);
  constexpr int kStep = kCachedWarps * R::kKeys, kAhead = R::kStages - 1;
  const int first = at.keys.begin + warp_id() * R::kKeys, end = at.keys.end;
#pragma unroll
  for (int s = 0; s < kAhead; ++s) source.template fetch<32>(ring, s, first + s * kStep, end, lane_id());
  MmaRows<K, kDim, kUpper> rows;
  rows.start(at, 0);
  int stage = 0, free_stage = kAhead;
  for (int key = first; key < end; key += kStep) {
    wait_for_group<kAhead - 1>();
    __syncwarp();  // all lanes' copies are there, and the stage before is read
    source.template fetch<32>(ring, free_stage, key + kAhead * kStep, end, lane_id());
    float scores[R::kKeys / 8][4];
    rows.score(ring, stage, scores);
    rows.soften(ring, stage, key, p.scale, scores);
    rows.mix(ring, stage, scores);
    stage = stage + 1 == R::kStages ? 0 : stage + 1;
    free_stage = free_stage + 1 == R::kStages ? 0 : free_stage + 1;
  }
  wait_for_group<0>();
  __syncthreads();  // the rings become the warps' results
  const WarpResults results(memory, kDim);
  write_warp<MmaRows<K, kDim, kUpper>, kDim>(rows, results);
  __syncthreads();
  finish_block(at, kDim, results);
}

template <class K, int kDim, bool kUpper>
void run(const Stream& stream, const CachedParams<bf16>& p, dim3 grid) {
  static const int kSharedBytes =
      std::max(kCachedWarps * Ring<K, kDim>::kBytes, static_cast<int>(WarpResults::bytes(kDim)));
  static const cudaError_t kAllowed = cudaFuncSetAttribute(
      attend_mma<K, kDim, kUpper>, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  check_cuda(kAllowed);
  attend_mma<K, kDim, kUpper>
      <<<grid, kCachedThreads, static_cast<std::size_t>(kSharedBytes), device::native(stream)>>>(p);
}

template <class K>
void run_dims(const Stream& stream, const CachedParams<bf16>& p, dim3 grid) {
  const bool upper = p.rows > 8;
  if (p.head_dim == 64) {
    upper ? run<K, 64, true>(stream, p, grid) : run<K, 64, false>(stream, p, grid);
  } else {
    upper ? run<K, 128, true>(stream, p, grid) : run<K, 128, false>(stream, p, grid);
  }
}

bool in_pairs(const CachedParams<bf16>& p) {
  bool even = reinterpret_cast<std::uintptr_t>(p.q_BTHD) % 4 == 0;
  for (const std::int64_t stride : p.q_stride) even = even && stride % 2 == 0;
  return even;
}
bool in_chunks(const void* data) { return reinterpret_cast<std::uintptr_t>(data) % 16 == 0; }

}  // namespace

bool cached_mma_takes(const CachedParams<bf16>& p, KvFormat format) {
  return format != KvFormat::f32 && (p.head_dim == 64 || p.head_dim == 128) && in_pairs(p) &&
         in_chunks(p.keys_BSGD) && in_chunks(p.values_BSGD);
}

void launch_cached_mma(const Stream& stream, const CachedParams<bf16>& p, KvFormat format, dim3 grid) {
  if (format == KvFormat::bf16) run_dims<bf16>(stream, p, grid);
  if (format == KvFormat::fp8) run_dims<KvFp8>(stream, p, grid);
  if (format == KvFormat::int8) run_dims<KvInt8>(stream, p, grid);
}

}  // namespace ridge::kernels::cuda
