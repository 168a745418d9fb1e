// Backward on a GPU: cuDNN where it will, else probabilities are made again from lse (Dao, FlashAttention-2,
// 2023, section 3.1): one kernel for dq by tiles of queries, one for dk and dv by tiles of keys, no atomics.
#include "kernels/attention_cudnn.h"
#include "kernels/attention_tile.cuh"

namespace ridge::kernels::cuda {
namespace {

template <class T>
struct BackwardParams {
  using A = acc_t<T>;
  Heads<const T> grad, q, k, v, o;
  Heads<T> dq, dk, dv;
  PerQuery<const A> lse;
  Mask mask;
  A* delta = nullptr;  // [B, H, T]: o . grad
  A scale = 1;
  std::int64_t batch = 0, heads = 0, groups = 0, share = 1;  // `share` query heads a key-value head
  int head_dim = 0;

  __device__ std::int64_t query(std::int64_t b, std::int64_t h, std::int64_t t) const {
    return (b * heads + h) * mask.queries + t;
  }
  __device__ A lse_base2(std::int64_t b, std::int64_t h, std::int64_t t) const {
    return *lse.at(b, h, t) * A(kLog2e);
  }
};

// One warp a query and head.
template <class T>
__global__ void __launch_bounds__(128) find_delta(const BackwardParams<T> p, std::int64_t rows) {
  const std::int64_t row = blockIdx.x * std::int64_t{4} + threadIdx.x / 32;
  if (row >= rows) return;
  const std::int64_t t = row % p.mask.queries, h = row / p.mask.queries % p.heads,
                     b = row / p.mask.queries / p.heads;
  const T *grad = p.grad.row(b, t, h), *o = p.o.row(b, t, h);
  acc_t<T> sum = 0;
  for (int d = static_cast<int>(threadIdx.x) % 32; d < p.head_dim; d += 32) {
    sum += device::load(grad[d]) * device::load(o[d]);
  }
  sum = device::warp_all<device::Sum>(sum);
  if (threadIdx.x % 32 == 0) p.delta[row] = sum;
}

// The tiles of a block: two that stay, two that change, and weights.
template <class S, class A>
struct Tiles {
  A *left, *right, *keys, *values, *weights;

  __device__ explicit Tiles(unsigned char* memory)
      : left(reinterpret_cast<A*>(memory)),
        right(left + S::kSize),
        keys(right + S::kSize),
        values(keys + S::kSize),
        weights(values + S::kSize) {}
  __device__ A& weight(int i, int j) const {
    return weights[(S::y() * S::R + i) * S::kWeightStride + S::x() + 16 * j];
  }
  static constexpr int kBytes = (4 * S::kSize + S::kWeights) * static_cast<int>(sizeof(A));
};

template <class S, class A>
__device__ __forceinline__ void clear(A (&sums)[S::R][S::kChunks * S::V]) {
#pragma unroll
  for (int i = 0; i < S::R; ++i) {
#pragma unroll
    for (int c = 0; c < S::kChunks * S::V; ++c) sums[i][c] = A(0);
  }
}

// One block: dq of a tile of one head's queries.
template <class T, int kDim>
__global__ void __launch_bounds__(kTileThreads)
    query_gradients(const BackwardParams<T> p, std::int64_t blocks) {
  using S = Tile<T, kDim>;
  using A = acc_t<T>;
  extern __shared__ __align__(16) unsigned char memory[];
  const Tiles<S, A> tiles(memory);  // left: queries, right: their gradients
  const std::int64_t first = (blocks - 1 - blockIdx.x % blocks) * S::kRows, head = blockIdx.x / blocks;
  const std::int64_t h = head % p.heads, b = head / p.heads, g = h / p.share;
  const int count = static_cast<int>(min(p.mask.queries - first, std::int64_t{S::kRows}));

  Seen seen[S::R];
  A lse[S::R], delta[S::R], sums[S::R][S::kChunks * S::V];
#pragma unroll
  for (int i = 0; i < S::R; ++i) {
    const std::int64_t t = first + S::y() * S::R + i;
    const bool inside = t < p.mask.queries;
    seen[i] = inside ? p.mask.of(t) : Seen{0, 0};
    lse[i] = inside ? p.lse_base2(b, h, t) : A(0);
    delta[i] = inside ? p.delta[p.query(b, h, t)] : A(0);
  }
  clear<S>(sums);
  S::load(tiles.left, p.q.row(b, first, h), p.q.token, count, p.head_dim, p.q.vectors);
  S::load(tiles.right, p.grad.row(b, first, h), p.grad.token, count, p.head_dim, p.grad.vectors);

  const std::int64_t begin = p.mask.of(first).begin, end = p.mask.of(first + count - 1).end;
  for (std::int64_t key = begin; key < end; key += S::kRows) {
    const int keys = static_cast<int>(min(end - key, std::int64_t{S::kRows}));
    __syncthreads();  // the tiles before have been read
    S::load(tiles.keys, p.k.row(b, key, g), p.k.token, keys, p.head_dim, p.k.vectors);
    S::load(tiles.values, p.v.row(b, key, g), p.v.token, keys, p.head_dim, p.v.vectors);
    __syncthreads();
    A scores[S::R][S::R], gradients[S::R][S::R];
    S::dot(tiles.left, tiles.keys, p.head_dim, scores);
    S::dot(tiles.right, tiles.values, p.head_dim, gradients);
#pragma unroll
    for (int i = 0; i < S::R; ++i) {
#pragma unroll
      for (int j = 0; j < S::R; ++j) {
        const bool visible = seen[i].has(key + S::x() + 16 * j);
        const A weight = power2(scores[i][j] * (p.scale * A(kLog2e)) - lse[i]);
        tiles.weight(i, j) = visible ? weight * (gradients[i][j] - delta[i]) : A(0);
      }
    }
    __syncwarp();  // a row of weights stays within half a warp
    S::mix(tiles.weights, tiles.keys, keys, sums);
  }
#pragma unroll
  for (int i = 0; i < S::R; ++i) {
    const int row = S::y() * S::R + i;
    if (row < count) S::store(p.dq.row(b, first + row, h), sums[i], p.scale, p.head_dim);
  }
}

// One block: dk and dv of a tile of one head's keys, over the queries of all heads that read it, in order.
template <class T, int kDim>
__global__ void __launch_bounds__(kTileThreads)
    key_gradients(const BackwardParams<T> p, std::int64_t blocks) {
  using S = Tile<T, kDim>;
  using A = acc_t<T>;
  extern __shared__ __align__(16) unsigned char memory[];
  const Tiles<S, A> tiles(memory);  // left: queries, right: their gradients
  const std::int64_t first = blockIdx.x % blocks * S::kRows, head = blockIdx.x / blocks;
  const std::int64_t g = head % p.groups, b = head / p.groups;
  const int count = static_cast<int>(min(p.mask.keys - first, std::int64_t{S::kRows}));

  A dk[S::R][S::kChunks * S::V], dv[S::R][S::kChunks * S::V];
  clear<S>(dk);
  clear<S>(dv);
  S::load(tiles.keys, p.k.row(b, first, g), p.k.token, count, p.head_dim, p.k.vectors);
  S::load(tiles.values, p.v.row(b, first, g), p.v.token, count, p.head_dim, p.v.vectors);

  const Seen range = p.mask.queries_of(first, first + count);
  for (std::int64_t h = g * p.share; h < (g + 1) * p.share; ++h) {
    for (std::int64_t query = range.begin; query < range.end; query += S::kRows) {
      const int queries = static_cast<int>(min(range.end - query, std::int64_t{S::kRows}));
      __syncthreads();  // the tiles before have been read
      S::load(tiles.left, p.q.row(b, query, h), p.q.token, queries, p.head_dim, p.q.vectors);
      S::load(tiles.right, p.grad.row(b, query, h), p.grad.token, queries, p.head_dim, p.grad.vectors);
      __syncthreads();
      A scores[S::R][S::R], gradients[S::R][S::R];  // [key, query]
      S::dot(tiles.keys, tiles.left, p.head_dim, scores);
      S::dot(tiles.values, tiles.right, p.head_dim, gradients);
#pragma unroll
      for (int j = 0; j < S::R; ++j) {
        const std::int64_t t = query + S::x() + 16 * j;
        const bool inside = t < range.end;
        const Seen seen = inside ? p.mask.of(t) : Seen{0, 0};
        const A lse = inside ? p.lse_base2(b, h, t) : A(0);
        const A delta = inside ? p.delta[p.query(b, h, t)] : A(0);
#pragma unroll
        for (int i = 0; i < S::R; ++i) {
          const bool visible = seen.has(first + S::y() * S::R + i);
          const A weight = visible ? power2(scores[i][j] * (p.scale * A(kLog2e)) - lse) : A(0);
          tiles.weight(i, j) = weight;
          gradients[i][j] = visible ? weight * (gradients[i][j] - delta) : A(0);
        }
      }
      __syncwarp();  // a row of weights stays within half a warp
      S::mix(tiles.weights, tiles.right, queries, dv);
      __syncwarp();
#pragma unroll
      for (int i = 0; i < S::R; ++i) {
#pragma unroll
        for (int j = 0; j < S::R; ++j) tiles.weight(i, j) = gradients[i][j];
      }
      __syncwarp();
      S::mix(tiles.weights, tiles.left, queries, dk);
    }
  }
#pragma unroll
  for (int i = 0; i < S::R; ++i) {
    const int row = S::y() * S::R + i;
    if (row >= count) continue;
    S::store(p.dk.row(b, first + row, g), dk[i], p.scale, p.head_dim);
    S::store(p.dv.row(b, first + row, g), dv[i], A(1), p.head_dim);
  }
}

template <class T>
void launch_backward(const Stream& stream, const BackwardParams<T>& params) {
  const std::int64_t rows = params.batch * params.heads * params.mask.queries;
  if (rows > 0) find_delta<T><<<device::grid_for(rows, 4), 128, 0, device::native(stream)>>>(params, rows);
  visit_head_dim(params.head_dim, [&](auto dim) {
    constexpr int kDim = decltype(dim)::value;
    using S = Tile<T, kDim>;
    constexpr int kBytes = Tiles<S, acc_t<T>>::kBytes;
    const std::int64_t query_blocks = device::ceil_div(params.mask.queries, S::kRows);
    const std::int64_t key_blocks = device::ceil_div(params.mask.keys, S::kRows);
    launch_tiles(query_gradients<T, kDim>, params.batch * params.heads * query_blocks, kTileThreads, kBytes,
                 stream, params, query_blocks);
    launch_tiles(key_gradients<T, kDim>, params.batch * params.groups * key_blocks, kTileThreads, kBytes,
                 stream, params, key_blocks);
  });
}

}  // namespace

template <class T>
void attention_backward(Stream& stream, const attention_detail::Problem& problem, View<const T> grad,
                        View<const T> q, View<const T> k, View<const T> v, View<const T> o,
                        View<const acc_t<T>> lse, View<T> dq, View<T> dk, View<T> dv, bool fused,
                        attention_detail::Workspace scratch) {
  if (problem.batch * problem.head_dim == 0) return;
  if constexpr (std::is_same_v<T, bf16>) {
    if (fused && fused_attention_backward(stream, problem, {grad, q, k, v, o, lse, dq, dk, dv}, scratch))
      return;
  }
  check(problem.queries < (std::int64_t{1} << 31), "attention: fewer than 2^31 queries");
  BackwardParams<T> p{heads_of(grad), heads_of(q),  heads_of(k),  heads_of(v),    heads_of(o),
                      heads_of(dq),   heads_of(dk), heads_of(dv), per_query(lse), Mask(problem)};
  p.delta = static_cast<acc_t<T>*>(scratch.data);
  p.scale = static_cast<acc_t<T>>(problem.options.scale);
  p.batch = problem.batch;
  p.heads = problem.heads;
  p.groups = problem.groups;
  p.share = problem.heads / problem.groups;
  p.head_dim = static_cast<int>(problem.head_dim);
  launch_backward(stream, p);
}

template void attention_backward(Stream&, const attention_detail::Problem&, View<const float>,
                                 View<const float>, View<const float>, View<const float>, View<const float>,
                                 View<const float>, View<float>, View<float>, View<float>, bool,
                                 attention_detail::Workspace);
template void attention_backward(Stream&, const attention_detail::Problem&, View<const double>,
                                 View<const double>, View<const double>, View<const double>,
                                 View<const double>, View<const double>, View<double>, View<double>,
                                 View<double>, bool, attention_detail::Workspace);
template void attention_backward(Stream&, const attention_detail::Problem&, View<const bf16>,
                                 View<const bf16>, View<const bf16>, View<const bf16>, View<const bf16>,
                                 View<const float>, View<bf16>, View<bf16>, View<bf16>, bool,
                                 attention_detail::Workspace);

}  // namespace ridge::kernels::cuda
