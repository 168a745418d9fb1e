// Forward for a few queries a head: keys and values are read once, in order, at the memory's speed.
//
// A warp holds some rows of one key-value head, spread over `kKey` lanes, and reads 32 / kKey keys at a time;
// each group of kKey lanes keeps sums of its own keys. Groups, then warps, then parts are joined in order.
// Where the rows are too many for one warp's registers, another warp reads the same keys, from the L1 cache.
#include "kernels/attention_forward.cuh"

namespace ridge::kernels::cuda {
namespace {

constexpr int kWarps = 4;  // that read different keys

template <class T, int kDim>
struct Lanes {
  static constexpr int W = device::kVec<T>;                             // elements a vector
  static constexpr int kVectors = kDim > 32 * W ? kDim / (32 * W) : 1;  // of a key, a lane
  static constexpr int kKey = kDim / (W * kVectors);                    // lanes a key
  static constexpr int kKeys = 32 / kKey;                               // keys a warp and load
  static constexpr int E = W * kVectors;                                // elements of a key, a lane
  static constexpr int kSteps = kVectors < 4 ? 4 / kVectors : 1;        // loads that are under way together

  static __device__ int lane() { return static_cast<int>(threadIdx.x) % 32; }
  static __device__ int warp() { return static_cast<int>(threadIdx.x) / 32; }
  static __device__ int column(int v) { return (v * kKey + lane() % kKey) * W; }

  /// Keys first + lane / kKey, and on in steps of kKeys; zeros from `end` on.
  static __device__ void load(Packed (&raw)[kSteps][kVectors], const Heads<const T>& x, std::int64_t b,
                              std::int64_t g, std::int64_t first, std::int64_t end, int head_dim) {
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
#pragma unroll
      for (int v = 0; v < kVectors; ++v) raw[s][v] = Packed{};
    }
    const std::int64_t key = first + lane() / kKey, step = kKeys * x.token;
    const T* row = x.row(b, key, g);
    if (x.vectors) {
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
#pragma unroll
        for (int v = 0; v < kVectors; ++v) {
          if (key + s * kKeys < end && column(v) < head_dim)
            raw[s][v] = *reinterpret_cast<const Packed*>(row + s * step + column(v));
        }
      }
      return;
    }
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
#pragma unroll
      for (int i = 0; i < E; ++i) {
        const int d = column(i / W) + i % W;
        if (key + s * kKeys < end && d < head_dim) raw[s][i / W].set(i % W, row[s * step + d]);
        asm volatile("" ::: "memory");  // one at a time: the registers are for the other way
      }
    }
  }
};

// Rows of a block, and what one group of lanes has of them.
template <class T, int kDim, int kRows>
struct Decode {
  using L = Lanes<T, kDim>;
  using A = acc_t<T>;
  A q[kRows][L::E], sums[kRows][L::E], maximum[kRows], sum[kRows];
  Seen seen[kRows];

  __device__ void start(const ForwardParams<T>& p, std::int64_t b, std::int64_t g, std::int64_t first_row,
                        Seen range) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const std::int64_t row = first_row + r, t = row % p.mask.queries,
                         h = g * p.share + row / p.mask.queries;
      const bool inside = row < p.share * p.mask.queries;
      const Seen visible = p.mask.of(t);
      seen[r] = {max(visible.begin, range.begin), min(visible.end, range.end)};
      maximum[r] = nothing<A>();
      sum[r] = A(0);
#pragma unroll
      for (int i = 0; i < L::E; ++i) {
        const int d = L::column(i / L::W) + i % L::W;
        sums[r][i] = A(0);
        q[r][i] = inside && d < p.head_dim ? device::load(p.q.row(b, t, h)[d]) * p.scale : A(0);
      }
    }
  }

  // scores[r][s] of the group's keys, in every lane of the group.
  __device__ void dot(const Packed (&keys)[L::kSteps][L::kVectors], A (&scores)[kRows][L::kSteps]) const {
#pragma unroll
    for (int s = 0; s < L::kSteps; ++s) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) scores[r][s] = A(0);
#pragma unroll
      for (int i = 0; i < L::E; ++i) {
        const A x = keys[s][i / L::W].template get<T>(i % L::W);
#pragma unroll
        for (int r = 0; r < kRows; ++r) scores[r][s] += q[r][i] * x;
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
#pragma unroll
        for (int step = L::kKey / 2; step > 0; step /= 2)
          scores[r][s] += __shfl_xor_sync(0xFFFFFFFFu, scores[r][s], step);
      }
    }
  }

  // Scores become weights.
  __device__ void soften(std::int64_t first, A (&scores)[kRows][L::kSteps]) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      A peak = maximum[r];
#pragma unroll
      for (int s = 0; s < L::kSteps; ++s) {
        if (!seen[r].has(first + s * L::kKeys + L::lane() / L::kKey)) scores[r][s] = nothing<A>();
        peak = scores[r][s] > peak ? scores[r][s] : peak;
      }
      const A base = peak == nothing<A>() ? A(0) : peak, keep = power2(maximum[r] - base);
      maximum[r] = peak;
      sum[r] *= keep;
#pragma unroll
      for (int i = 0; i < L::E; ++i) sums[r][i] *= keep;
#pragma unroll
      for (int s = 0; s < L::kSteps; ++s) {
        scores[r][s] = power2(scores[r][s] - base);
        sum[r] += scores[r][s];
      }
    }
  }

  __device__ void mix(const Packed (&values)[L::kSteps][L::kVectors], const A (&weights)[kRows][L::kSteps]) {
#pragma unroll
    for (int s = 0; s < L::kSteps; ++s) {
#pragma unroll
      for (int i = 0; i < L::E; ++i) {
        const A x = values[s][i / L::W].template get<T>(i % L::W);
#pragma unroll
        for (int r = 0; r < kRows; ++r) sums[r][i] += weights[r][s] * x;
      }
    }
  }

  // The first group of lanes gets what all groups of the warp have.
  __device__ void join_groups() {
#pragma unroll
    for (int step = L::kKey; step < 32; step *= 2) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const A other = __shfl_xor_sync(0xFFFFFFFFu, maximum[r], step);
        const A peak = other > maximum[r] ? other : maximum[r], base = peak == nothing<A>() ? A(0) : peak;
        const A keep = power2(maximum[r] - base), take = power2(other - base);
        maximum[r] = peak;
        sum[r] = sum[r] * keep + __shfl_xor_sync(0xFFFFFFFFu, sum[r], step) * take;
#pragma unroll
        for (int i = 0; i < L::E; ++i)
          sums[r][i] = sums[r][i] * keep + __shfl_xor_sync(0xFFFFFFFFu, sums[r][i], step) * take;
      }
    }
  }
};

// What the warps of a block have.
template <class A, int kDim, int kRows>
struct WarpSums {
  A sums[kWarps][kRows][kDim], maximum[kWarps][kRows], sum[kWarps][kRows];
};

// Joins the warps of a block, and writes.
template <class T, int kDim, int kRows>
__device__ void write_rows(const ForwardParams<T>& p, const WarpSums<acc_t<T>, kDim, kRows>& of,
                           std::int64_t b, std::int64_t g, std::int64_t first_row, int part) {
  using A = acc_t<T>;
  for (int i = static_cast<int>(threadIdx.x); i < kRows * kDim; i += static_cast<int>(blockDim.x)) {
    const int r = i / kDim, d = i % kDim;
    const std::int64_t row = first_row + r, t = row % p.mask.queries, h = g * p.share + row / p.mask.queries;
    if (row >= p.share * p.mask.queries) continue;
    A peak = nothing<A>(), value = A(0), total = A(0);
#pragma unroll
    for (int w = 0; w < kWarps; ++w) peak = of.maximum[w][r] > peak ? of.maximum[w][r] : peak;
    const A base = peak == nothing<A>() ? A(0) : peak;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const A take = power2(of.maximum[w][r] - base);
      value += of.sums[w][r][d] * take;
      total += of.sum[w][r] * take;
    }
    if (p.partial == nullptr) {
      if (d < p.head_dim) p.o.row(b, t, h)[d] = device::round_to<T>(value * inverse(total));
      if (d == 0) p.store_lse(b, h, t, peak, total);
    } else {
      A* to = p.partial_row(b, h, t, part);
      if (d < p.head_dim) to[d] = value;
      if (d == 0) to[p.head_dim] = peak;
      if (d == 0) to[p.head_dim + 1] = total;
    }
  }
}

// What the registers allow without spilling.
template <class T, int kRows, int kRowWarps>
inline constexpr int kBlocksAtOnce = kRowWarps > 1    ? 1
                                     : kRows == 1     ? 4
                                     : sizeof(T) == 8 ? 2
                                                      : 3;

// One block: kRows * kRowWarps rows of one key-value head against one part of the keys.
template <class T, int kDim, int kRows, int kRowWarps>
__global__ void __launch_bounds__(32 * kWarps * kRowWarps, (kBlocksAtOnce<T, kRows, kRowWarps>))
    forward_decode(const ForwardParams<T> p) {
  using L = Lanes<T, kDim>;
  using A = acc_t<T>;
  constexpr int kAllRows = kRows * kRowWarps;
  __shared__ WarpSums<A, kDim, kAllRows> shared;
  std::int64_t unit = blockIdx.x;
  const std::int64_t first_row = unit % p.blocks * kAllRows;  // neighbours read the same keys
  unit /= p.blocks;
  const auto part = static_cast<int>(unit % p.parts);
  unit /= p.parts;
  const std::int64_t g = unit % p.groups, b = unit / p.groups;
  const Seen range = p.part(part);
  const std::int64_t begin = max(range.begin, p.mask.of(0).begin);
  const std::int64_t end = min(range.end, p.mask.of(p.mask.queries - 1).end);

  const int warp = L::warp() / kRowWarps, warp_row = L::warp() % kRowWarps * kRows;
  Decode<T, kDim, kRows> rows;
  rows.start(p, b, g, first_row + warp_row, range);
  constexpr int kTogether = L::kKeys * L::kSteps;
  for (std::int64_t key = begin + warp * kTogether; key < end; key += kWarps * kTogether) {
    Packed keys[L::kSteps][L::kVectors], values[L::kSteps][L::kVectors];
    A scores[kRows][L::kSteps];
    L::load(keys, p.k, b, g, key, end, p.head_dim);
    L::load(values, p.v, b, g, key, end, p.head_dim);
    rows.dot(keys, scores);
    rows.soften(key, scores);
    rows.mix(values, scores);
  }
  rows.join_groups();
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    if (L::lane() >= L::kKey) continue;
#pragma unroll
    for (int i = 0; i < L::E; ++i)
      shared.sums[warp][warp_row + r][L::column(i / L::W) + i % L::W] = rows.sums[r][i];
    shared.maximum[warp][warp_row + r] = rows.maximum[r];
    shared.sum[warp][warp_row + r] = rows.sum[r];
  }
  __syncthreads();
  write_rows<T, kDim, kAllRows>(p, shared, b, g, first_row, part);
}

template <class T, int kRows, int kRowWarps>
void launch_rows(const Stream& stream, const ForwardParams<T>& params) {
  const std::int64_t blocks = params.batch * params.groups * params.parts * params.blocks;
  check(blocks < (std::int64_t{1} << 31), "attention: fewer than 2^31 blocks");
  visit_head_dim(params.head_dim, [&](auto dim) {
    forward_decode<T, decltype(dim)::value, kRows, kRowWarps>
        <<<static_cast<unsigned>(blocks), 32 * kWarps * kRowWarps, 0, device::native(stream)>>>(params);
  });
}

}  // namespace

template <class T>
void launch_forward_decode(const Stream& stream, const ForwardParams<T>& params, int rows) {
  if constexpr (sizeof(acc_t<T>) == 8) {
    rows == 1 ? launch_rows<T, 1, 1>(stream, params) : launch_rows<T, 2, 1>(stream, params);
  } else {
    if (rows == 1) return launch_rows<T, 1, 1>(stream, params);
    if (rows == 4) return launch_rows<T, 4, 1>(stream, params);
    launch_rows<T, 4, 2>(stream, params);
  }
}

template void launch_forward_decode(const Stream&, const ForwardParams<float>&, int);
template void launch_forward_decode(const Stream&, const ForwardParams<double>&, int);
template void launch_forward_decode(const Stream&, const ForwardParams<bf16>&, int);

}  // namespace ridge::kernels::cuda
