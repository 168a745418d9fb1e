// The kernels of decode_attention. Both begin to read the cache before the kernel ahead of them is done.
#pragma once

#include "kernels/decode_attention_join.cuh"
#include "kernels/decode_attention_rows.cuh"
#include "kernels/decode_attention_token.cuh"
#include "kernels/device/overlap.cuh"

namespace ridge::kernels::cuda {

/// Of one of `parts` blocks.
template <int kDim>
__device__ void write_no_token(const DecodeBlock& at, int parts) {
  const int each = at.p.share * kDim / parts;
  for (int i = static_cast<int>(threadIdx.x); i < each; i += static_cast<int>(blockDim.x))
    at.o_of(0, kDim)[at.part * each + i] = device::round_to<bf16>(0.0f);
}

/// A warp's tiles of its block's part.
template <class K, int kDim, int kStages>
struct DecodeWarp {
  using R = Ring<K, kDim>;
  using Rows = DecodeRows<K, kDim>;
  static constexpr int kStep = decode_detail::kPartWarps * R::kKeys, kAhead = kStages - 1;
  const DecodeBlock& at;
  DecodeTiles<K, kDim> tiles;
  int first;  // key
  DecodeQueries<Rows, kDim> queries;
  DecodeToken<K, kDim> token;
  Rows rows;

  /// Begins to read what no kernel ahead writes.
  __device__ __forceinline__ DecodeWarp(const DecodeBlock& block, unsigned rings)
      : at(block),
        tiles(block, rings + static_cast<unsigned>(warp_id() * block.p.ring_bytes)),
        first(block.begin + warp_id() * R::kKeys) {
#pragma unroll
    for (int s = 0; s < kAhead; ++s) tiles.fetch(s, first + s * kStep);
    queries.load_angles(at.p, at.position);
    token.load_angles(at.p, at.position);
    rows.seen = {at.begin, at.end};
  }

  /// After the kernels ahead: the new token's queries, key and value.
  __device__ __forceinline__ void start() {
    const bool has_token =
        at.position < at.end && (at.position - first) % kStep < R::kKeys && first <= at.position;
    queries.load(at);
    if (has_token) token.load(at);
    queries.rotate(rows);
    if (has_token) token.append(at);
    __syncwarp();
  }
  /// The block's warps, in `memory` of its rings.
  __device__ __forceinline__ DecodeWarps<kDim> finish(void* memory) const {
    const DecodeWarps<kDim> warps(memory, at.p.share);
    __syncthreads();  // all tiles are read
    warps.write(rows);
    __syncthreads();
    return warps;
  }
  __device__ __forceinline__ void meet() {
    int stage = 0, free_stage = kAhead;
    for (int key = first; key < at.end; key += kStep) {
      wait_for_group<kAhead - 1>();
      __syncwarp();  // all lanes' copies are there, and the stage before is read
      tiles.fetch(free_stage, key + kAhead * kStep);
      if (at.position < key + R::kKeys) {
        if (at.position < at.end) token.insert(tiles.ring, stage, at.position - key);
        __syncwarp();
      }
      float scores[R::kKeys / 16][4];
      rows.score(tiles.ring, stage, scores);
      rows.soften(tiles.ring, stage, key, at.p.scale, scores);
      rows.mix(tiles.ring, stage, scores);
      stage = stage + 1 == kStages ? 0 : stage + 1;
      free_stage = free_stage + 1 == kStages ? 0 : free_stage + 1;
    }
  }
};

/// Few keys: the parts of a head are a cluster, and their sums meet in its shared memory.
template <class K, int kDim, int kStages>
__global__ void __cluster_dims__(decode_detail::kClusterParts, 1, 1)
    __launch_bounds__(32 * decode_detail::kPartWarps)
        attend_few_keys(const __grid_constant__ DecodeAttentionParams p) {
  using namespace decode_detail;
  using Exchange = DecodeExchange<K, kDim>;
  extern __shared__ __align__(128) unsigned char memory[];
  device::let_next_begin();
  const Exchange exchange{shared_address(memory), p.share};
  if (threadIdx.x == 0) exchange.begin();
  __syncwarp();
  device::cluster_arrive_relaxed();
  const int rank = static_cast<int>(device::cluster_rank());
  const DecodeBlock at(p, static_cast<int>(blockIdx.x) / kClusterParts, rank);
  if (at.position < 0) {
    device::wait_for_previous();
    return write_no_token<kDim>(at, kClusterParts);
  }
  DecodeWarp<K, kDim, kStages> warp(at, exchange.at + static_cast<unsigned>(Exchange::bytes(p.share)));
  device::wait_for_previous();
  warp.start();
  warp.meet();
  device::cluster_wait();  // all its blocks have begun
  exchange.send(warp.rows, rank);
  if (rank < Exchange::kSlices) exchange.join(at, rank);
}

/// Any number of keys: the parts of a head meet in the scratch.
template <class K, int kDim, int kStages, int kBlocks>
__global__ void __launch_bounds__(32 * decode_detail::kPartWarps, kBlocks)
    attend_many_keys(const __grid_constant__ DecodeAttentionParams p) {
  using namespace decode_detail;
  extern __shared__ __align__(128) unsigned char memory[];
  device::let_next_begin();
  const int groups = p.groups, part = static_cast<int>(blockIdx.x) / groups;
  const DecodeBlock at(p, static_cast<int>(blockIdx.x) - part * groups,
                       part);  // neighbours read side by side
  if (part >= at.cut.parts) {
    if (part > 0) return;
    device::wait_for_previous();
    return write_no_token<kDim>(at, 1);
  }
  DecodeWarp<K, kDim, kStages> warp(at, shared_address(memory));
  device::wait_for_previous();
  warp.start();
  warp.meet();
  const DecodeParts<kDim> parts(at);
  parts.write(warp.finish(memory));
  if (parts.is_last()) parts.join();
}

}  // namespace ridge::kernels::cuda
