// Attention over a cache in f32: any format and head dim. Lanes of a warp hold a key's elements side by side,
// and a few rows meet each key.
#include "core/base/cuda_check.h"
#include "core/base/error.h"
#include "kernels/cached_attention.cuh"

namespace ridge::kernels::cuda {
namespace {

constexpr int kRowsAtOnce = 4;
constexpr std::int64_t kMostDims = 256;
template <int kE>
constexpr int kKeysAtOnce = kE == 8 ? 2 : 4;  // what the registers allow

__device__ __forceinline__ float element(float x) { return x; }
__device__ __forceinline__ float element(bf16 x) { return device::load(x); }
__device__ __forceinline__ float element(KvInt8 x) {
  return static_cast<float>(static_cast<std::int8_t>(x.bits));
}
// The bits of the number's f32 but for the sign's place and 2^120; NaN's scale is NaN already.
__device__ __forceinline__ float element(KvFp8 x) {
  const auto wide = static_cast<unsigned>(static_cast<int>(static_cast<std::int8_t>(x.bits)));
  return __uint_as_float((wide << 20) & 0x87F00000u) * 0x1p120f;
}

// A lane's elements of some keys: d = lane + 32 i.
template <class K, int kE>
__device__ __forceinline__ void load_keys(float (&x)[kKeysAtOnce<kE>][kE], const K* rows, std::int64_t step,
                                          const float* scales, std::int64_t scale_step, int key, int end,
                                          int head_dim) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int k = 0; k < kKeysAtOnce<kE>; ++k) {
    const bool inside = key + k < end;
    float scale = 1;
    if constexpr (kKvScaled<K>) scale = inside ? scales[(key + k) * scale_step] : 0.0f;
#pragma unroll
    for (int i = 0; i < kE; ++i) {
      const int d = lane + 32 * i;
      x[k][i] = inside && d < head_dim ? element(rows[(key + k) * step + d]) * scale : 0.0f;
    }
  }
}

// A warp's part of some rows.
template <int kE>
struct WarpRows {
  float q[kRowsAtOnce][kE], sums[kRowsAtOnce][kE], maximum[kRowsAtOnce], sum[kRowsAtOnce];
  CachedRange seen[kRowsAtOnce];

  template <class T>
  __device__ void start(const CachedBlock<T>& at, int first) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int r = 0; r < kRowsAtOnce; ++r) {
      seen[r] = at.seen_by(first + r);
      maximum[r] = -INFINITY;
      sum[r] = 0;
#pragma unroll
      for (int i = 0; i < kE; ++i) {
        const int d = lane + 32 * i;
        sums[r][i] = 0;
        q[r][i] = first + r < at.rows && d < at.p.head_dim ? device::load(at.q_row(first + r)[d]) * at.p.scale
                                                           : 0.0f;
      }
    }
  }

  __device__ void meet(const float (&keys)[kKeysAtOnce<kE>][kE], const float (&values)[kKeysAtOnce<kE>][kE],
                       int key) {
#pragma unroll
    for (int r = 0; r < kRowsAtOnce; ++r) {
      float score[kKeysAtOnce<kE>], peak = maximum[r];
#pragma unroll
      for (int k = 0; k < kKeysAtOnce<kE>; ++k) {
        score[k] = 0;
#pragma unroll
        for (int i = 0; i < kE; ++i) score[k] += q[r][i] * keys[k][i];
        score[k] = device::warp_all<device::Sum>(score[k]);
        if (key + k < seen[r].begin || key + k >= seen[r].end) score[k] = -INFINITY;
        peak = score[k] > peak ? score[k] : peak;
      }
      const float base = finite_base(peak), keep = exp2f(maximum[r] - base);
      maximum[r] = peak;
      sum[r] *= keep;
#pragma unroll
      for (int i = 0; i < kE; ++i) sums[r][i] *= keep;
#pragma unroll
      for (int k = 0; k < kKeysAtOnce<kE>; ++k) {
        const float weight = exp2f(score[k] - base);
        sum[r] += weight;
#pragma unroll
        for (int i = 0; i < kE; ++i) sums[r][i] += weight * values[k][i];
      }
    }
  }

  __device__ void write(const WarpResults& to, int first, int head_dim) const {
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
#pragma unroll
    for (int r = 0; r < kRowsAtOnce; ++r) {
      const int row = warp * kCachedRows + first + r;
#pragma unroll
      for (int i = 0; i < kE; ++i) {
        if (lane + 32 * i < head_dim) to.sums[row * head_dim + lane + 32 * i] = sums[r][i];
      }
      if (lane == 0) to.maximum[row] = maximum[r], to.sum[row] = sum[r];
    }
  }
};

template <class T, class K, int kE>
__global__ void __launch_bounds__(kCachedThreads, 2) attend(const __grid_constant__ CachedParams<T> p) {
  extern __shared__ __align__(16) unsigned char memory[];
  const CachedBlock<T> at(p, kCachedRows);
  if (at.part >= at.parts) {
    if (at.parts == 0 && at.part == 0) write_zeros(at);
    return;
  }
  const WarpResults results(memory, p.head_dim);
  const std::int64_t row = at.b * p.capacity * p.groups + at.g,
                     step = static_cast<std::int64_t>(p.groups) * p.head_dim;
  const K *keys = static_cast<const K*>(p.keys_BSGD) + row * p.head_dim,
          *values = static_cast<const K*>(p.values_BSGD) + row * p.head_dim;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  for (int first = 0; first < at.rows; first += kRowsAtOnce) {
    WarpRows<kE> rows;
    rows.start(at, first);
    for (int key = at.keys.begin + warp * kKeysAtOnce<kE>; key < at.keys.end;
         key += kCachedWarps * kKeysAtOnce<kE>) {
      float k[kKeysAtOnce<kE>][kE], v[kKeysAtOnce<kE>][kE];
      load_keys(k, keys, step, p.key_scales_BSG + row, p.groups, key, at.keys.end, p.head_dim);
      load_keys(v, values, step, p.value_scales_BSG + row, p.groups, key, at.keys.end, p.head_dim);
      rows.meet(k, v, key);
    }
    rows.write(results, first, p.head_dim);
  }
  __syncthreads();
  finish_block(at, p.head_dim, results);
}

template <class T, class K, int kE>
void run(const Stream& stream, const CachedParams<T>& p, dim3 grid) {
  const auto bytes = static_cast<int>(WarpResults::bytes(p.head_dim));
  static const cudaError_t kAllowed =
      cudaFuncSetAttribute(attend<T, K, kE>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                           static_cast<int>(WarpResults::bytes(kMostDims)));
  check_cuda(kAllowed);
  attend<T, K, kE><<<grid, kCachedThreads, static_cast<std::size_t>(bytes), device::native(stream)>>>(p);
}

template <class T>
void run_any(const Stream& stream, const CachedParams<T>& p, KvFormat format, dim3 grid) {
  visit_kv(format, [&](auto tag) {
    using K = typename decltype(tag)::type;
    if (p.head_dim <= 32) return run<T, K, 1>(stream, p, grid);
    if (p.head_dim <= 64) return run<T, K, 2>(stream, p, grid);
    if (p.head_dim <= 128) return run<T, K, 4>(stream, p, grid);
    run<T, K, 8>(stream, p, grid);
  });
}

template <class T>
CachedParams<T> params_of(const View<const T>& q, const KvView& cache,
                          const View<const std::int32_t>& positions, const View<T>& o,
                          const CachedAttentionOptions& options, const View<float>& scratch, int most_rows) {
  using namespace cached_detail;
  constexpr double kLog2e = 1.4426950408889634;
  CachedParams<T> p{};
  p.q_BTHD = q.data, p.o_BTHD = o.data;
  p.keys_BSGD = cache.keys, p.values_BSGD = cache.values;
  p.key_scales_BSG = cache.key_scales, p.value_scales_BSG = cache.value_scales;
  p.positions_BT = positions.data;
  for (int d = 0; d < 3; ++d) p.q_stride[d] = q.strides[d], p.o_stride[d] = o.strides[d];
  p.capacity = cache.capacity;
  p.window = static_cast<int>(std::min<std::int64_t>(options.window, kMostKeys));
  p.table = static_cast<int>(std::min(options.keys, cache.capacity));
  const std::int64_t groups = cache.kv_heads, all_rows = q.dim(1) * (q.dim(2) / groups),
                     row_blocks = device::ceil_div(all_rows, most_rows);
  p.queries = static_cast<unsigned>(q.dim(1)), p.groups = static_cast<unsigned>(groups);
  p.share = static_cast<unsigned>(q.dim(2) / groups), p.row_blocks = static_cast<unsigned>(row_blocks);
  p.rows = static_cast<int>(std::min<std::int64_t>(most_rows, all_rows));
  p.head_dim = static_cast<int>(q.dim(3));
  p.scale = static_cast<float>(options.scale * kLog2e);
  p.rule = gpu_cut(static_cast<std::int32_t>(std::min<std::int64_t>(groups * row_blocks, kGpuUnits)));
  const std::int64_t blocks = q.dim(0) * row_blocks * groups, rows = blocks * p.rule.most * p.rows;
  if (p.rule.most > 1 && blocks > kGpuCounters)
    fail("cached_attention: {} sequences times heads, of at most {}", blocks, kGpuCounters);
  p.counters = reinterpret_cast<unsigned*>(scratch.data);
  p.part_sums = scratch.data + kGpuCounters;
  p.part_max = p.part_sums + rows * p.head_dim;
  p.part_sum = p.part_max + rows;
  return p;
}

}  // namespace

template <class T>
void cached_attention(Stream& stream, View<const T> q, const KvView& cache,
                      View<const std::int32_t> positions, View<T> o, const CachedAttentionOptions& options,
                      View<float> scratch) {
  check(q.dim(3) <= kMostDims, "cached_attention: head dims up to 256 on a GPU");
  check(q.dim(0) < 65536 && q.dim(1) * q.dim(2) < std::int64_t{1} << 24,
        "cached_attention: fewer than 65536 sequences and 2^24 query rows of each");
  const auto params = [&](int most_rows) {
    return params_of<T>(q, cache, positions, o, options, scratch, most_rows);
  };
  const CachedParams<T> p = params(kCachedRows);
  const dim3 grid = cached_grid(p, q.dim(0));
  if constexpr (std::is_same_v<T, bf16>) {
    if (cached_mma_takes(p, cache.format)) {
      if (p.queries * p.share < kCachedWideRows) return launch_cached_mma(stream, p, cache.format, grid);
      const CachedParams<T> wide = params(kCachedWideRows);
      return launch_cached_wide(stream, wide, cache.format, cached_grid(wide, q.dim(0)));
    }
  }
  run_any<T>(stream, p, cache.format, grid);
}

template void cached_attention(Stream&, View<const float>, const KvView&, View<const std::int32_t>,
                               View<float>, const CachedAttentionOptions&, View<float>);
template void cached_attention(Stream&, View<const bf16>, const KvView&, View<const std::int32_t>, View<bf16>,
                               const CachedAttentionOptions&, View<float>);

}  // namespace ridge::kernels::cuda
