// Forward on a GPU: cuDNN where it will, else dot products for a few queries, tensor cores for bf16, or tiles
// in shared memory, which take everything.
#include "kernels/attention_cudnn.h"
#include "kernels/attention_forward.cuh"
#include "kernels/attention_tile.cuh"

namespace ridge::kernels::cuda {
namespace {

// Scores become exp2(score - maximum) in `weights`; the row's maximum and sums follow.
template <class S, class A>
__device__ __forceinline__ void soften(A (&scores)[S::R], Seen seen, std::int64_t first, A scale, A* weights,
                                       A& maximum, A& sum, A (&sums)[S::kChunks * S::V]) {
  A peak = maximum;
#pragma unroll
  for (int j = 0; j < S::R; ++j) {
    scores[j] = seen.has(first + S::x() + 16 * j) ? scores[j] * scale : nothing<A>();
    peak = scores[j] > peak ? scores[j] : peak;
  }
  peak = row_all<device::Max>(peak);
  const A base = peak == nothing<A>() ? A(0) : peak, keep = power2(maximum - base);
  A total = 0;
#pragma unroll
  for (int j = 0; j < S::R; ++j) {
    const A weight = power2(scores[j] - base);
    weights[S::x() + 16 * j] = weight;
    total += weight;
  }
  sum = sum * keep + row_all<device::Sum>(total);
  maximum = peak;
#pragma unroll
  for (int c = 0; c < S::kChunks * S::V; ++c) sums[c] *= keep;
}

// One block: a tile of one head's queries against one part of the keys.
template <class T, int kDim>
__global__ void __launch_bounds__(kTileThreads, (sizeof(acc_t<T>) == 8 ? 1 : 2))
    forward_tiles(const ForwardParams<T> p) {
  using S = Tile<T, kDim>;
  using A = acc_t<T>;
  extern __shared__ __align__(16) unsigned char memory[];
  A* q = reinterpret_cast<A*>(memory);  // [kRows, D]
  A* kv = q + S::kSize;                 // [kRows, D]: keys, then their values
  A* weights = kv + S::kSize;           // [kRows, kRows]
  const auto [first, count, b, h, g, part] = p.tile_unit(blockIdx.x, S::kRows);
  const std::int64_t begin = p.clipped(first, part).begin, end = p.clipped(first + count - 1, part).end;
  Seen seen[S::R];
  A maximum[S::R], sum[S::R], sums[S::R][S::kChunks * S::V];
#pragma unroll
  for (int i = 0; i < S::R; ++i) {
    seen[i] = p.clipped(first + S::y() * S::R + i, part);
    maximum[i] = nothing<A>();
    sum[i] = A(0);
#pragma unroll
    for (int c = 0; c < S::kChunks * S::V; ++c) sums[i][c] = A(0);
  }

  S::load(q, p.q.row(b, first, h), p.q.token, count, p.head_dim, p.q.vectors);
  for (std::int64_t key = begin; key < end; key += S::kRows) {
    const int keys = static_cast<int>(min(end - key, std::int64_t{S::kRows}));
    __syncthreads();  // the values before have been read
    S::load(kv, p.k.row(b, key, g), p.k.token, keys, p.head_dim, p.k.vectors);
    __syncthreads();
    A scores[S::R][S::R];
    S::dot(q, kv, p.head_dim, scores);
#pragma unroll
    for (int i = 0; i < S::R; ++i) {
      A* row = weights + (S::y() * S::R + i) * S::kWeightStride;
      soften<S>(scores[i], seen[i], key, p.scale, row, maximum[i], sum[i], sums[i]);
    }
    __syncthreads();  // the keys have been read
    S::load(kv, p.v.row(b, key, g), p.v.token, keys, p.head_dim, p.v.vectors);
    __syncthreads();
    S::mix(weights, kv, keys, sums);
  }

#pragma unroll
  for (int i = 0; i < S::R; ++i) {
    const int row = S::y() * S::R + i;
    if (row >= count) continue;
    if (p.partial == nullptr) {
      S::store(p.o.row(b, first + row, h), sums[i], inverse(sum[i]), p.head_dim);
      if (S::x() == 0) p.store_lse(b, h, first + row, maximum[i], sum[i]);
      continue;
    }
    A* to = p.partial_row(b, h, first + row, part);
#pragma unroll
    for (int c = 0; c < S::kChunks * S::V; ++c) {
      const int d = S::column(c / S::V) + c % S::V;
      if (d < p.head_dim) to[d] = sums[i][c];
    }
    if (S::x() == 0) {
      to[p.head_dim] = maximum[i];
      to[p.head_dim + 1] = sum[i];
    }
  }
}

// One warp a query and head: joins the parts in their order.
template <class T>
__global__ void __launch_bounds__(128) join_parts(const ForwardParams<T> p, std::int64_t rows) {
  using A = acc_t<T>;
  const std::int64_t row = blockIdx.x * std::int64_t{4} + threadIdx.x / 32;  // [B, H, T]
  if (row >= rows) return;
  const std::int64_t t = row % p.mask.queries, h = row / p.mask.queries % p.heads,
                     b = row / p.mask.queries / p.heads;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  A peak = nothing<A>();
  for (int part = lane; part < p.parts; part += 32) {
    const A maximum = p.partial_row(b, h, t, part)[p.head_dim];
    peak = maximum > peak ? maximum : peak;
  }
  peak = device::warp_all<device::Max>(peak);
  const A base = peak == nothing<A>() ? A(0) : peak;
  A sum = 0, sums[attention_detail::kDeviceHeadDims / 32] = {};
  for (int part = 0; part < p.parts; ++part) {
    const A* from = p.partial_row(b, h, t, part);
    const A take = power2(from[p.head_dim] - base);
    sum += from[p.head_dim + 1] * take;
#pragma unroll
    for (int c = 0; c < attention_detail::kDeviceHeadDims / 32; ++c) {
      if (c * 32 + lane < p.head_dim) sums[c] += from[c * 32 + lane] * take;
    }
  }
  T* to = p.o.row(b, t, h);
#pragma unroll
  for (int c = 0; c < attention_detail::kDeviceHeadDims / 32; ++c) {
    if (c * 32 + lane < p.head_dim) to[c * 32 + lane] = device::round_to<T>(sums[c] * inverse(sum));
  }
  if (lane == 0) p.store_lse(b, h, t, peak, sum);
}

template <class T>
void launch_forward_tiles(const Stream& stream, const ForwardParams<T>& params) {
  if constexpr (std::is_same_v<T, bf16>) {
    if (params.q.vectors && params.k.vectors && params.v.vectors) return launch_forward_mma(stream, params);
  }
  visit_head_dim(params.head_dim, [&](auto dim) {
    using S = Tile<T, decltype(dim)::value>;
    const int shared = (2 * S::kSize + S::kWeights) * static_cast<int>(sizeof(acc_t<T>));
    const std::int64_t blocks = params.batch * params.heads * params.blocks * params.parts;
    launch_tiles(forward_tiles<T, decltype(dim)::value>, blocks, kTileThreads, shared, stream, params);
  });
}

template <class T>
ForwardParams<T> params_of(const attention_detail::Problem& problem, const View<const T>& q,
                           const View<const T>& k, const View<const T>& v, const View<T>& o,
                           const View<acc_t<T>>& lse, const attention_detail::ForwardCut& cut,
                           void* partial) {
  ForwardParams<T> p{heads_of(q), heads_of(k), heads_of(v), heads_of(o), per_query(lse), Mask(problem)};
  p.partial = static_cast<acc_t<T>*>(partial);
  p.scale = static_cast<acc_t<T>>(problem.options.scale * kLog2e);
  p.batch = problem.batch;
  p.heads = problem.heads;
  p.groups = problem.groups;
  p.share = problem.heads / problem.groups;
  p.head_dim = static_cast<int>(problem.head_dim);
  p.blocks = device::ceil_div(cut.decode ? problem.rows() : problem.queries, cut.rows);
  const attention_detail::KeyRange span = problem.span();
  p.first_key = span.begin;
  p.last_key = span.end;
  p.parts = partial != nullptr ? static_cast<int>(cut.parts) : 1;
  p.part_keys = partial != nullptr ? cut.part_keys : span.end - span.begin;
  return p;
}

}  // namespace

template <class T>
void attention(Stream& stream, const attention_detail::Problem& problem, View<const T> q, View<const T> k,
               View<const T> v, View<T> o, View<acc_t<T>> lse, bool fused,
               attention_detail::Workspace partial) {
  const std::int64_t rows = problem.batch * problem.heads * problem.queries;
  if (rows == 0) return;
  if constexpr (std::is_same_v<T, bf16>) {
    if (fused && fused_attention(stream, problem, q, k, v, o, lse)) return;
  }
  check(problem.queries < (std::int64_t{1} << 31), "attention: fewer than 2^31 queries");
  const auto cut = attention_detail::forward_cut<T>(problem);
  const ForwardParams<T> params = params_of<T>(problem, q, k, v, o, lse, cut, partial.data);
  if (cut.decode) {
    launch_forward_decode(stream, params, static_cast<int>(cut.rows));
  } else {
    launch_forward_tiles(stream, params);
  }
  if (params.parts > 1)
    join_parts<T><<<device::grid_for(rows, 4), 128, 0, device::native(stream)>>>(params, rows);
}

template void attention(Stream&, const attention_detail::Problem&, View<const float>, View<const float>,
                        View<const float>, View<float>, View<float>, bool, attention_detail::Workspace);
template void attention(Stream&, const attention_detail::Problem&, View<const double>, View<const double>,
                        View<const double>, View<double>, View<double>, bool, attention_detail::Workspace);
template void attention(Stream&, const attention_detail::Problem&, View<const bf16>, View<const bf16>,
                        View<const bf16>, View<bf16>, View<float>, bool, attention_detail::Workspace);

}  // namespace ridge::kernels::cuda
