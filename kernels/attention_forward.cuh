// What the two forward kernels of a GPU share: operands, parts of the keys, and where results go.
#pragma once

#include "kernels/attention_tile.cuh"

namespace ridge::kernels::cuda {

template <class A>
__device__ __forceinline__ A inverse(A sum) {
  return sum == A(0) ? A(0) : A(1) / sum;
}

/// Queries of one head and a part of the keys.
struct TileUnit {
  std::int64_t first;  // query
  int count;
  std::int64_t b, h, g;
  int part;
};

template <class T>
struct ForwardParams {
  using A = acc_t<T>;
  Heads<const T> q, k, v;
  Heads<T> o;
  PerQuery<A> lse;  // data is null where it is not wanted
  Mask mask;
  A* partial = nullptr;  // [B, H, T, parts, D + 2]: sums, maximum, sum of weights; null: one part, to o
  A scale = 1;           // to the base 2
  std::int64_t batch = 0, heads = 0, groups = 0, share = 1;  // `share` query heads a key-value head
  int head_dim = 0;
  int parts = 1;
  std::int64_t blocks = 0;  // of rows: of a head, or of a key-value head when decoding
  std::int64_t first_key = 0, last_key = 0, part_keys = 0;

  __device__ Seen part(int i) const {
    const std::int64_t begin = first_key + i * part_keys;
    return {static_cast<int>(min(begin, last_key)), static_cast<int>(min(begin + part_keys, last_key))};
  }
  __device__ Seen clipped(std::int64_t t, int i) const {
    const Seen seen = mask.of(t), range = part(i);
    return {max(seen.begin, range.begin), min(seen.end, range.end)};
  }
  /// Parts of the same tile are neighbours, and the long rows of a causal mask come first.
  __device__ TileUnit tile_unit(std::int64_t unit, int rows) const {
    const auto at_part = static_cast<int>(unit % parts);
    unit /= parts;
    const std::int64_t first = (blocks - 1 - unit % blocks) * rows, head = unit / blocks, h = head % heads;
    const auto count = static_cast<int>(min(mask.queries - first, std::int64_t{rows}));
    return {first, count, head / heads, h, h / share, at_part};
  }
  __device__ A* partial_row(std::int64_t b, std::int64_t h, std::int64_t t, int i) const {
    return partial + (((b * heads + h) * mask.queries + t) * parts + i) * (head_dim + 2);
  }
  __device__ void store_lse(std::int64_t b, std::int64_t h, std::int64_t t, A maximum, A sum) const {
    if (lse.data != nullptr) *lse.at(b, h, t) = (maximum + logarithm2(sum)) * A(kLn2);
  }
};

/// On tensor cores; q, k and v with rows of 16-byte vectors (attention_mma.cu).
void launch_forward_mma(const Stream& stream, ForwardParams<bf16> params);

/// At most a few queries a head, `rows` of them a block (attention_decode.cu).
template <class T>
void launch_forward_decode(const Stream& stream, const ForwardParams<T>& params, int rows);

}  // namespace ridge::kernels::cuda
