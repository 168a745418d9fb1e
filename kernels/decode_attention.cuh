// Attention of one new token a sequence: the operands, how the keys are cut, and what a block takes.
//
// The keys of a sequence and key-value head are cut into parts, one a block, whose warps take tiles in turns.
// Warps are joined, then parts, always in their order. B sequences, H query heads, G key-value heads, D head
// dim, X = (H + 2 G) D.
#pragma once

#include <cstdint>

#include "kernels/decode_attention_cut.h"
#include "kernels/decode_attention_rows.cuh"

namespace ridge::kernels::cuda {

/// By when a block needs them, for each 64 bytes are a miss of a kernel's constants.
struct DecodeAttentionParams {
  // to ask for keys and values
  const std::int32_t* positions_B;
  void *keys_BSGD, *values_BSGD;
  std::int64_t capacity;
  int window, limit;                         // positions are below limit
  int heads, groups, share;                  // share: query heads a key-value head
  int ring_bytes;                            // of a warp
  float *key_scales_BSG, *value_scales_BSG;  // null without scales
  // for the new token and results
  const float *cos_PD2, *sin_PD2;
  const bf16* qkv_BX;
  std::int64_t qkv_stride, o_stride;  // B
  bf16* o_BX;
  float scale;         // to the base 2
  unsigned* counters;  // [B, G]: parts that are done; 0 between launches
  float* part_sums;    // [B, G, parts, share, D]
  float2* part_peaks;  // [B, G, parts, share]: maximum, sum of weights
};

/// What a block takes: one part of the keys of a sequence and key-value head.
struct DecodeBlock {
  const DecodeAttentionParams& p;
  int b, g, part;
  int position;  // of the new token; -1: none
  decode_detail::DecodeCut cut;
  int begin, end;  // the part's keys, maybe none

  static __device__ int position_of(const DecodeAttentionParams& p) {
    const int position = __ldcg(p.positions_B + blockIdx.y);
    return position < p.limit ? max(position, -1) : -1;
  }
  __device__ DecodeBlock(const DecodeAttentionParams& params, int head, int which)
      : p(params),
        b(static_cast<int>(blockIdx.y)),
        g(head),
        part(which),
        position(position_of(params)),
        cut(position < 0 ? 0 : cached_detail::first_key(position, params.window), position + 1,
            params.groups),
        begin(cut.part_begin(which)),
        end(cut.part_end(which)) {}

  __device__ std::int64_t cache_row(int key) const {
    return (static_cast<std::int64_t>(b) * p.capacity + key) * p.groups + g;
  }
  /// Head `head` of q, k and v in a row.
  __device__ const bf16* head_of(int head, int head_dim) const {
    return p.qkv_BX + b * p.qkv_stride + static_cast<std::int64_t>(head) * head_dim;
  }
  __device__ bf16* o_of(int row, int head_dim) const {
    return p.o_BX + b * p.o_stride + static_cast<std::int64_t>(g * p.share + row) * head_dim;
  }
};

/// A part's keys and values below the new token, as a lane copies them.
template <class K, int kDim>
struct DecodeTiles {
  using R = Ring<K, kDim>;
  static constexpr int kRowsAPass = 32 / R::kChunks, kPasses = R::kKeys / kRowsAPass;
  R ring;
  const char *keys, *values;  // of key 0, at the lane's row and chunk of a pass
  const float *key_scales, *value_scales;
  std::int64_t step;      // bytes from key to key
  int groups, end, last;  // keys below end; of them those from `last` on are not in the cache yet
  int row, chunk;

  __device__ DecodeTiles(const DecodeBlock& at, unsigned ring_address)
      : ring{ring_address},
        step(static_cast<std::int64_t>(at.p.groups) * R::kRowBytes),
        groups(at.p.groups),
        end(at.end),
        last(min(at.end, at.position)),
        row(lane_id() / R::kChunks),
        chunk(lane_id() % R::kChunks) {
    const std::int64_t first = at.cache_row(0), lane = first * R::kRowBytes + row * step + chunk * 16;
    keys = static_cast<const char*>(at.p.keys_BSGD) + lane;
    values = static_cast<const char*>(at.p.values_BSGD) + lane;
    key_scales = at.p.key_scales_BSG + first;
    value_scales = at.p.value_scales_BSG + first;
  }

  template <bool kWhole>
  __device__ __forceinline__ void copy(int stage, int first) const {
    const char *k = keys + first * step, *v = values + first * step;
#pragma unroll
    for (int i = 0; i < kPasses; ++i) {
      const bool inside = kWhole || first + row + i * kRowsAPass < last;
      const unsigned to = R::offset(row + i * kRowsAPass, chunk);
      copy_to_shared<16>(ring.tile(stage, 0) + to, inside ? k : keys, inside);
      copy_to_shared<16>(ring.tile(stage, 1) + to, inside ? v : values, inside);
      k += kRowsAPass * step, v += kRowsAPass * step;
    }
    if constexpr (kKvScaled<K>) {
      static_assert(R::kKeys == 32);
      const bool inside = kWhole || first + lane_id() < last;
      const std::int64_t at = inside ? static_cast<std::int64_t>(first + lane_id()) * groups : 0;
      const unsigned to = ring.scales_at(stage) + static_cast<unsigned>(4 * lane_id());
      copy_to_shared<4>(to, key_scales + at, inside);
      copy_to_shared<4>(to + 4 * R::kKeys, value_scales + at, inside);
    }
  }
  /// Starts to copy the tile of keys from `first` on, with zeros from `last` on; one group, even if empty.
  __device__ __forceinline__ void fetch(int stage, int first) const {
    if (first + R::kKeys <= last) {
      copy<true>(stage, first);
    } else if (first < end) {
      copy<false>(stage, first);
    }
    end_group();
  }
};

}  // namespace ridge::kernels::cuda
