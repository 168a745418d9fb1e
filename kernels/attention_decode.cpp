// Attention of a few rows against many keys: each key and value is read once, as vectors along the head dim,
// and meets every row while it is in registers.
#include "kernels/attention_rows.h"
#include "kernels/vector_math.h"

namespace ridge::kernels::attention_detail {
namespace {

template <class A>
constexpr A kNothing = -std::numeric_limits<A>::infinity();

template <class T>
struct DecodeMemory {
  using A = acc_t<T>;
  std::int64_t width;
  Scratch<A> all;
  A* q = all.data();                    // [kDecodeRows, width]
  A* scores = q + kDecodeRows * width;  // [kDecodeRows, kKeys]
  explicit DecodeMemory(std::int64_t w) : width(w), all(kDecodeRows * (w + kKeys)) {}
};

// scores[r, j] = q[r] . key[j] for keys [begin, begin + n).
template <int kRows, class T>
void score(const View<const T>& k, const RowBlock& block, std::int64_t begin, std::int64_t n,
           const acc_t<T>* q, std::int64_t width, acc_t<T>* scores) {
  using A = acc_t<T>;
  constexpr std::int64_t kWide = kLanes<A>;
  const std::int64_t head_dim = k.dim(3), whole = head_dim / kWide * kWide;
  for (std::int64_t j = 0; j < n; ++j) {
    const T* __restrict key = &k(block.b, begin + j, block.g, 0);
    A sums[kRows][kWide] = {};
    for (std::int64_t d = 0; d < whole; d += kWide) {
      for (int r = 0; r < kRows; ++r) {
#pragma omp simd
        for (int l = 0; l < kWide; ++l) sums[r][l] += load(key[d + l]) * q[r * width + d + l];
      }
    }
    for (int r = 0; r < kRows; ++r) {
      A total = 0;
#pragma omp simd reduction(+ : total)
      for (int l = 0; l < kWide; ++l) total += sums[r][l];
      for (std::int64_t d = whole; d < head_dim; ++d) total += load(key[d]) * q[r * width + d];
      scores[r * kKeys + j] = total;
    }
  }
}

// out[r] += sum over j of weights[r, j] value[j], four values at a time.
template <int kRows, class T>
void mix(const View<const T>& v, const RowBlock& block, std::int64_t begin, std::int64_t n,
         const acc_t<T>* weights, std::int64_t width, acc_t<T>* out) {
  using A = acc_t<T>;
  const std::int64_t head_dim = v.dim(3);
  std::int64_t j = 0;
  for (; j + 4 <= n; j += 4) {
    const T* __restrict v0 = &v(block.b, begin + j, block.g, 0);
    const T* __restrict v1 = &v(block.b, begin + j + 1, block.g, 0);
    const T* __restrict v2 = &v(block.b, begin + j + 2, block.g, 0);
    const T* __restrict v3 = &v(block.b, begin + j + 3, block.g, 0);
    for (int r = 0; r < kRows; ++r) {
      const A* w = weights + r * kKeys + j;
      const A w0 = w[0], w1 = w[1], w2 = w[2], w3 = w[3];
      A* __restrict to = out + r * width;
#pragma omp simd
      for (std::int64_t d = 0; d < head_dim; ++d) {
        to[d] += w0 * load(v0[d]) + w1 * load(v1[d]) + (w2 * load(v2[d]) + w3 * load(v3[d]));
      }
    }
  }
  for (; j < n; ++j) {
    const T* __restrict value = &v(block.b, begin + j, block.g, 0);
    for (int r = 0; r < kRows; ++r) {
      const A w = weights[r * kKeys + j];
      A* __restrict to = out + r * width;
#pragma omp simd
      for (std::int64_t d = 0; d < head_dim; ++d) to[d] += w * load(value[d]);
    }
  }
}

// Hides keys that row r does not see, and turns its scores into exp(score - max); rescales what it had.
template <class A>
void soften(KeyRange seen, std::int64_t begin, std::int64_t n, std::int64_t width, A* __restrict scores,
            A* out, A& max, A& sum) {
  A peak = max;
#pragma omp simd reduction(max : peak)
  for (std::int64_t j = 0; j < n; ++j) {
    scores[j] = begin + j >= seen.begin && begin + j < seen.end ? scores[j] : kNothing<A>;
    peak = scores[j] > peak ? scores[j] : peak;
  }
  const A base = peak == kNothing<A> ? A(0) : peak, keep = vexp(max - base);
  A total = 0;
#pragma omp simd reduction(+ : total)
  for (std::int64_t j = 0; j < n; ++j) {
    scores[j] = vexp(scores[j] - base);
    total += scores[j];
  }
  if (peak != max) {
    for (std::int64_t d = 0; d < width; ++d) out[d] *= keep;
  }
  sum = sum * keep + total;
  max = peak;
}

template <int kRows, class T>
void decode_rows(const Problem& problem, const View<const T>& k, const View<const T>& v,
                 const RowBlock& block, KeyRange keys, const DecodeMemory<T>& memory,
                 const Partial<acc_t<T>>& result) {
  for (std::int64_t tile = keys.begin; tile < keys.end; tile += kKeys) {
    const std::int64_t n = std::min(kKeys, keys.end - tile);
    score<kRows>(k, block, tile, n, memory.q, memory.width, memory.scores);
    for (int r = 0; r < kRows; ++r) {
      soften(problem.visible(block.first + r), tile, n, memory.width, memory.scores + r * kKeys,
             result.out + r * memory.width, result.max[r], result.sum[r]);
    }
    mix<kRows>(v, block, tile, n, memory.scores, memory.width, result.out);
  }
}

// The part of `range` that some row of the block sees.
KeyRange seen_part(const Problem& problem, const RowBlock& block, KeyRange range) {
  KeyRange seen{range.end, range.begin};
  for (std::int64_t r = 0; r < block.count; ++r) {
    const KeyRange row = problem.visible(block.first + r);
    if (row.begin >= row.end) continue;
    seen.begin = std::min(seen.begin, std::max(range.begin, row.begin));
    seen.end = std::max(seen.end, std::min(range.end, row.end));
  }
  return seen;
}

}  // namespace

template <class T>
void attend_decode(const Problem& problem, const View<const T>& q, const View<const T>& k,
                   const View<const T>& v, const RowBlock& block, KeyRange range,
                   const Partial<acc_t<T>>& result) {
  using A = acc_t<T>;
  const DecodeMemory<T> memory(round_up(problem.head_dim, kLanes<A>));
  for (std::int64_t r = 0; r < block.count; ++r) {
    const T* from = row_of(q, problem, block, block.first + r);
    for (std::int64_t d = 0; d < problem.head_dim; ++d) {
      memory.q[r * memory.width + d] = load(from[d]) * static_cast<A>(problem.options.scale);
    }
    result.max[r] = kNothing<A>;
    result.sum[r] = A(0);
  }
  std::fill(result.out, result.out + block.count * memory.width, A(0));
  const KeyRange keys = seen_part(problem, block, range);
  if (block.count == 1) return decode_rows<1>(problem, k, v, block, keys, memory, result);
  if (block.count == 2) return decode_rows<2>(problem, k, v, block, keys, memory, result);
  if (block.count == 3) return decode_rows<3>(problem, k, v, block, keys, memory, result);
  decode_rows<4>(problem, k, v, block, keys, memory, result);
}

template void attend_decode(const Problem&, const View<const float>&, const View<const float>&,
                            const View<const float>&, const RowBlock&, KeyRange, const Partial<float>&);
template void attend_decode(const Problem&, const View<const double>&, const View<const double>&,
                            const View<const double>&, const RowBlock&, KeyRange, const Partial<double>&);
template void attend_decode(const Problem&, const View<const bf16>&, const View<const bf16>&,
                            const View<const bf16>&, const RowBlock&, KeyRange, const Partial<float>&);

}  // namespace ridge::kernels::attention_detail
