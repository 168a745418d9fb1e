// Few rows of x times a matrix whose bytes are read once, at the memory's rate.
//
// Blocks take tiles of 16 rows of w in turn. Each warp has every eighth piece of a tile's columns: it copies
// them into a ring of its own in shared memory several pieces ahead, turns codes into the 16-row operand of
// tensor cores in registers, and leaves its part of the tile's sums to the warp that comes last. No warp
// waits for another. The rings are filled before the kernels ahead in the stream have ended.
//
// Shapes as in decode_product_params.cuh.
#pragma once

#include "core/base/cuda.h"
#include "core/base/cuda_check.h"
#include "kernels/decode_product_warp.cuh"
#include "kernels/device/overlap.cuh"
#include "kernels/device/silu.cuh"
#include "kernels/device/vec.cuh"

namespace ridge::kernels::cuda {

/// How the parts of a tile become its results: the warp that comes last adds them up.
template <class Format, int kHalves>
struct TileEnd {
  const DecodeBlock<Format, kHalves>& block;
  int lane;
  int tile = 0;
  float row_scale = 1;  // lane l's: of half l / 16, row l % 16
  float before = 0;     // lane l's: what the tile's result l is added to

  __device__ __forceinline__ explicit TileEnd(const DecodeBlock<Format, kHalves>& b)
      : block(b), lane(static_cast<int>(threadIdx.x) % 32) {}

  /// Reads what the end will need.
  __device__ __forceinline__ void enter(int t) {
    const DecodeParams& p = block.p;
    tile = t;
    if constexpr (Format::kScaledAtEnd && !Format::kDense) {
      if (lane < kHalves * kTileRows) {
        const DecodeHalf& half = p.half[lane / kTileRows];
        const std::int64_t row = half.first_row + std::int64_t{tile} * kTileRows + lane % kTileRows;
        row_scale = __ldg(reinterpret_cast<const float*>(half.scales) + row);
      }
    }
    if (p.end == ProductEnd::add && lane < kTileRows * p.m) before = device::load(*result(lane));
  }
  /// After the warp has left its part in `partial`, of the block's tile number `turn`.
  __device__ __forceinline__ void arrive(const float* partial, unsigned turn) const {
    const unsigned slot = turn % kSlots;
    __syncwarp();
    unsigned left = 0;
    if (lane == 0) left = device::arrive_and_count(block.full(slot));
    if (__shfl_sync(0xFFFFFFFFu, left, 0) != 1) return;
    device::await(block.full(slot), parity(turn));
    write(partial);
    __syncwarp();
    if (lane == 0) device::arrive(block.empty(slot));
  }
  /// Until tile number `turn` may leave its parts: the one that had its place before is added up.
  __device__ __forceinline__ void await_place(unsigned turn) const {
    device::await(block.empty(turn % kSlots), parity(turn) ^ 1);
  }

 private:
  __device__ __forceinline__ std::uint32_t parity(unsigned turn) const {
    return static_cast<std::uint32_t>(turn / kSlots) & 1u;
  }
  __device__ __forceinline__ bf16* result(int i) const {
    return block.p.y + i / kTileRows * block.p.y_stride + tile * kTileRows + i % kTileRows;
  }
  __device__ __forceinline__ float sum(const float* partial, int half, int i, float scale) const {
    float part[kDecodeWarps];
#pragma unroll
    for (int w = 0; w < kDecodeWarps; ++w)
      part[w] = partial[(half * kDecodeWarps + w) * block.p.m * kTileRows + i];
    return scale *
           (((part[0] + part[1]) + (part[2] + part[3])) + ((part[4] + part[5]) + (part[6] + part[7])));
  }
  __device__ __forceinline__ float with_bias(float total, int half, std::int64_t row) const {
    const float rounded = device::load(device::round_to<bf16>(total));
    const bf16* bias = block.p.half[half].bias;
    if (bias == nullptr) return rounded;
    return device::load(device::round_to<bf16>(rounded + device::load(bias[row])));
  }
  __device__ __forceinline__ void write(const float* partial) const {
    const DecodeParams& p = block.p;
    for (int base = 0; base < kTileRows * p.m; base += 32) {
      const int i = base + lane, row = i % kTileRows;
      const float scale = __shfl_sync(0xFFFFFFFFu, row_scale, row);
      const float up_scale = kHalves == 2 ? __shfl_sync(0xFFFFFFFFu, row_scale, kTileRows + row) : 1.0f;
      if (i >= kTileRows * p.m) continue;
      bf16* to = result(i);
      const std::int64_t output = std::int64_t{tile} * kTileRows + row;
      float value = with_bias(sum(partial, 0, i, scale), 0, output);
      if constexpr (kHalves == 2) {
        const float up = with_bias(sum(partial, 1, i, up_scale), 1, output);
        value = device::load(device::round_to<bf16>(device::silu_of<bf16>(value))) * up;
      }
      if (p.end == ProductEnd::add) value += base == 0 ? before : device::load(*to);
      *to = device::round_to<bf16>(value);
    }
  }
};

/// Until the oldest of a warp's pieces is there, all but one of its stages being under way.
__device__ __forceinline__ void await_stage(int stages) {
  if (stages == kMostStages) return device::await_copies<kMostStages - 2>();
  if (stages == 5) return device::await_copies<3>();
  if (stages == 4) return device::await_copies<2>();
  device::await_copies<1>();
}

template <class Format, int kHalves, int kNT>
using AnyWarp =
    std::conditional_t<Format::kInteger, IntegerWarp<Format, kHalves, kNT>, DecodeWarp<Format, kHalves>>;

template <class Format, int kHalves, int kNT>
__device__ __forceinline__ void multiply_tiles(const DecodeBlock<Format, kHalves>& block,
                                               PieceReader<Format, kHalves>& reader) {
  const DecodeParams& p = block.p;
  AnyWarp<Format, kHalves, kNT> warp(block);
  TileEnd<Format, kHalves> end(block);
  Ring<Format> ring(block.ring(warp.warp), block.at.ring_bytes);
  unsigned turn = 0;
  if constexpr (Format::kNested) warp.nested.load(p, 0, std::int64_t{blockIdx.x} * kTileRows, warp.g, true);
  for (int tile = static_cast<int>(blockIdx.x); tile < p.tiles; tile += static_cast<int>(gridDim.x), ++turn) {
    constexpr int kFloats = kDecodeWarps * kTileRows;
    float* partial = block.template of<float>(block.at.partials) + turn % kSlots * kHalves * kFloats * p.m;
    end.enter(tile);
    for (int half = 0; half < kHalves; ++half) {
      NestedScales next;
      if constexpr (Format::kNested) {
        const bool last = half + 1 == kHalves;
        const int to = last ? tile + static_cast<int>(gridDim.x) : tile;
        next.load(p, last ? 0 : half + 1, std::int64_t{to} * kTileRows, warp.g, to < p.tiles);
      }
      int piece = warp.warp;
      do {  // once at least: the reader counts alike
        await_stage(block.at.stages);
        __syncwarp();
        typename WarpCodes<Format, kHalves>::Codes codes;
        warp.load(codes, ring.stage);
        reader.read();
        warp.multiply(codes, piece, ring.stage);
        ring.next();
        piece += kDecodeWarps;
      } while (piece < p.pieces);
      if (half == 0) end.await_place(turn);
      warp.leave(partial + half * kFloats * p.m);
      if constexpr (Format::kNested) warp.nested = next;
    }
    end.arrive(partial, turn);
  }
}

// kLong: where long_rows() says so.
template <class Format, int kHalves, int kNT, bool kLong>
__global__ void __launch_bounds__(kDecodeThreads, kBlocks)
    decode_product_kernel(const __grid_constant__ DecodeParams p, const __grid_constant__ DecodeShared at) {
  extern __shared__ __align__(128) char memory[];
  device::let_next_begin();
  const DecodeBlock<Format, kHalves> block(p, at, memory);
  PieceReader<Format, kHalves> reader(block, static_cast<int>(threadIdx.x) / 32);
  const int early = min(at.stages - 1, kEarlyPieces);
  for (int s = 0; s < early; ++s) reader.read();
  block.begin();
  const XStage<Format, kHalves> x(block);
  __syncthreads();
  device::wait_for_previous();
  if constexpr (kLong) {
    for (int s = early; s + 1 < at.stages; ++s) reader.read();
    x.all_long();
  } else {
    x.all([&] {
      for (int s = early; s + 1 < at.stages; ++s) reader.read();
    });
  }
  multiply_tiles<Format, kHalves, kNT>(block, reader);
}

template <class Format, int kHalves, int kNT, bool kLong = false>
bool launch_kernel(cudaStream_t stream, const DecodeParams& params) {
  const DecodeShared at = DecodeShared::of<Format, kHalves>(params);
  if (at.bytes == 0) return false;
  const auto kernel = decode_product_kernel<Format, kHalves, kNT, kLong>;
  static const cudaError_t kAllowed = device::allow_shared_memory(kernel, kMostShared);
  check_cuda(kAllowed);
  const int most = (at.bytes <= shared_of(kBlocks) ? kBlocks : 1) * ridge::cuda::multiprocessors();
  device::launch_waiting(stream, params.early, kernel,
                         dim3(static_cast<unsigned>(std::min(params.tiles, most))), kDecodeThreads,
                         static_cast<std::size_t>(at.bytes), params, at);
  return true;
}

template <class Format, int kHalves>
bool launch_halves(cudaStream_t stream, const DecodeParams& params) {
  if constexpr (Format::kFactored) {
    if (long_rows<Format>(params)) {
      if constexpr (kHalves == 1) return launch_kernel<Format, 1, 1, true>(stream, params);
      return false;
    }
  }
  if constexpr (Format::kInteger) {
    if (params.m > 4) return launch_kernel<Format, kHalves, 4>(stream, params);
    if (params.m > 2) return launch_kernel<Format, kHalves, 2>(stream, params);
  }
  return launch_kernel<Format, kHalves, 1>(stream, params);
}

template <class Format>
bool launch_decode_product(cudaStream_t stream, const DecodeParams& params) {
  if (params.end == ProductEnd::swiglu) return launch_halves<Format, 2>(stream, params);
  return launch_halves<Format, 1>(stream, params);
}

}  // namespace ridge::kernels::cuda
