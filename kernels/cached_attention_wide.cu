// Many rows of a key-value head over a cache, on tensor cores: a chunk of a prompt. The warps of a block have
// 16 rows each, and meet the same tiles.
#include "core/base/cuda_check.h"
#include "kernels/cached_attention_mma.cuh"

namespace ridge::kernels::cuda {
namespace {

// Writes o, or the part's results.
template <class Rows, int kDim>
__device__ __forceinline__ void write_rows(const Rows& rows, const CachedBlock<bf16>& at, int first_row) {
  const CachedParams<bf16>& p = at.p;
  const std::int64_t first = (at.block * p.rule.most + at.part) * p.rows;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = first_row + lane_id() / 4 + 8 * half;
    const float total = rows.total(half), inverse = inverse_sum(total);
    if (row >= at.rows) continue;
    bf16* o = at.o_row(row);
    if (at.parts > 1 && lane_id() % 4 == 0)
      p.part_max[first + row] = rows.maximum[half], p.part_sum[first + row] = total;
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
#pragma unroll
      for (int i = 2 * half; i < 2 * half + 2; ++i) {
        const int d = Rows::column(n, i);
        if (at.parts == 1) o[d] = device::round_to<bf16>(rows.sums[n][i] * inverse);
        if (at.parts > 1) p.part_sums[(first + row) * kDim + d] = rows.sums[n][i];
      }
    }
  }
}

template <class K, int kDim>
__global__ void __launch_bounds__(kCachedThreads, 2)
    attend_wide(const __grid_constant__ CachedParams<bf16> p) {
  using R = Ring<K, kDim>;
  using Rows = MmaRows<K, kDim, true>;
  extern __shared__ __align__(128) unsigned char memory[];
  const CachedBlock<bf16> at(p, kCachedWideRows);
  if (at.part >= at.parts) {
    if (at.parts == 0 && at.part == 0) write_zeros(at);
    return;
  }
  const R ring{shared_address(memory)};
  const Source<K, kDim> source(at);
  constexpr int kAhead = R::kStages - 1;
  const int end = at.keys.end, first_row = 16 * warp_id(), thread = static_cast<int>(threadIdx.x);
#pragma unroll
  for (int s = 0; s < kAhead; ++s)
    source.template fetch<kCachedThreads>(ring, s, at.keys.begin + s * R::kKeys, end, thread);
  Rows rows;
  rows.start(at, first_row);
  int stage = 0, free_stage = kAhead;
  for (int key = at.keys.begin; key < end; key += R::kKeys) {
    wait_for_group<kAhead - 1>();
    __syncthreads();  // all threads' copies are there, and the stage before is read
    source.template fetch<kCachedThreads>(ring, free_stage, key + kAhead * R::kKeys, end, thread);
    float scores[R::kKeys / 8][4];
    rows.score(ring, stage, scores);
    rows.soften(ring, stage, key, p.scale, scores);
    rows.mix(ring, stage, scores);
    stage = stage + 1 == R::kStages ? 0 : stage + 1;
    free_stage = free_stage + 1 == R::kStages ? 0 : free_stage + 1;
  }
  wait_for_group<0>();
  write_rows<Rows, kDim>(rows, at, first_row);
  if (at.parts == 1 || !last_of_parts(at)) return;
  auto* factors = reinterpret_cast<float*>(memory);
  part_factors(at, factors);
  __syncthreads();
  join_parts<4>(at, kDim, factors);
}

template <class K, int kDim>
void run(const Stream& stream, const CachedParams<bf16>& p, dim3 grid) {
  constexpr int kMostFactors = 4 * cached_detail::kGpuUnits * kCachedWideRows;
  const int bytes = std::max(Ring<K, kDim>::kBytes, 4 * p.rule.most * p.rows);
  static const cudaError_t kAllowed =
      cudaFuncSetAttribute(attend_wide<K, kDim>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                           std::max(Ring<K, kDim>::kBytes, kMostFactors));
  check_cuda(kAllowed);
  attend_wide<K, kDim><<<grid, kCachedThreads, static_cast<std::size_t>(bytes), device::native(stream)>>>(p);
}

template <class K>
void run_dims(const Stream& stream, const CachedParams<bf16>& p, dim3 grid) {
  p.head_dim == 64 ? run<K, 64>(stream, p, grid) : run<K, 128>(stream, p, grid);
}

}  // namespace

void launch_cached_wide(const Stream& stream, const CachedParams<bf16>& p, KvFormat format, dim3 grid) {
  if (format == KvFormat::bf16) run_dims<bf16>(stream, p, grid);
  if (format == KvFormat::fp8) run_dims<KvFp8>(stream, p, grid);
  if (format == KvFormat::int8) run_dims<KvInt8>(stream, p, grid);
}

}  // namespace ridge::kernels::cuda
