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

/// How the parts of a tile become its results: the warp that comes last adds them up. Of one row of x a lane
/// has one result at most.
template <class Format, bool kOneRow>
struct TileEnd {
  const DecodeBlock<Format>& block;
  int lane;
  int tile = 0;
  float row_scale = 1;  // lane l's: of row l % 16
  // As they come, so that nothing waits for them before the end:
  std::uint16_t before = 0;    // lane l's: what the tile's result l is added to
  std::uint16_t bias[2] = {};  // of the halves' row of the lane, where there is one; of one row of x

  __device__ __forceinline__ explicit TileEnd(const DecodeBlock<Format>& b)
      : block(b), lane(static_cast<int>(threadIdx.x % 32)) {}

  /// Reads what the end will need.
  __device__ __forceinline__ void enter(int t) {
    const DecodeParams& p = block.p;
    tile = t;
    if constexpr (Format::kScaledAtEnd && !Format::kDense) {
      const std::uint8_t *first = p.scales[0], *second = p.scales[1];
      const auto* of =
          reinterpret_cast<const float*>(p.gated() && lane % kTileRows >= kTileRows / 2 ? second : first);
      row_scale = __ldg(of + (tile * p.rows + (lane & (p.rows - 1))));
    }
    if (p.end == ProductEnd::add && lane < kTileRows * block.m) before = bits_of(result(lane));
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const bf16* from = p.bias[h];
      if (kOneRow && from != nullptr) bias[h] = bits_of(from + (tile * p.rows + (lane & (p.rows - 1))));
    }
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
  static __device__ __forceinline__ std::uint16_t bits_of(const bf16* from) {
    return *reinterpret_cast<const std::uint16_t*>(from);
  }
  static __device__ __forceinline__ float value_of(std::uint16_t bits) {
    return __uint_as_float(std::uint32_t{bits} << 16);
  }
  __device__ __forceinline__ std::uint32_t parity(unsigned turn) const {
    return static_cast<std::uint32_t>(turn / kSlots) & 1u;
  }
  /// Number i of the tile's results: a row of x after the other.
  __device__ __forceinline__ bf16* result(int i) const {
    const DecodeParams& p = block.p;
    if constexpr (kOneRow) return p.y + (tile * p.rows + i);
    return p.y + (i >> p.log_rows()) * p.y_stride + tile * p.rows + (i & (p.rows - 1));
  }
  __device__ __forceinline__ float sum(const float* partial, int m, int row, float scale) const {
    float part[kDecodeWarps];
#pragma unroll
    for (int w = 0; w < kDecodeWarps; ++w) part[w] = partial[(w * block.m + m) * kTileRows + row];
    return scale *
           (((part[0] + part[1]) + (part[2] + part[3])) + ((part[4] + part[5]) + (part[6] + part[7])));
  }
  __device__ __forceinline__ float with_bias(float total, int half, int row) const {
    const float rounded = device::load(device::round_to<bf16>(total));
    const bf16* from = block.p.bias[half];
    if (from == nullptr) return rounded;
    const std::uint16_t bits = kOneRow ? bias[half] : bits_of(from + (tile * block.p.rows + row));
    return device::load(device::round_to<bf16>(rounded + value_of(bits)));
  }
  __device__ __forceinline__ void write(const float* partial) const {
    const DecodeParams& p = block.p;
    for (int base = 0; base < (kOneRow ? 1 : p.rows * block.m); base += 32) {
      const int i = base + lane, row = i & (p.rows - 1),
                m = kOneRow ? 0 : min(i >> p.log_rows(), block.m - 1);
      float scale = 1, up_scale = 1;
      if constexpr (Format::kScaledAtEnd && !Format::kDense) {
        scale = __shfl_sync(0xFFFFFFFFu, row_scale, row);
        up_scale = __shfl_sync(0xFFFFFFFFu, row_scale, kTileRows / 2 + row);
      }
      if (i >= p.rows * block.m) continue;
      float value = with_bias(sum(partial, m, row, scale), 0, row);
      if (p.gated()) {
        const float up = with_bias(sum(partial, m, kTileRows / 2 + row, up_scale), 1, row);
        value = device::load(device::round_to<bf16>(device::silu_of<bf16>(value))) * up;
      }
      bf16* to = result(i);
      if (p.end == ProductEnd::add) value += kOneRow || base == 0 ? value_of(before) : device::load(*to);
      *to = device::round_to<bf16>(value);
    }
  }
};

/// Until the oldest of a warp's pieces is there, all but one of its stages being under way.
__device__ __forceinline__ void await_stage(int stages) {
  static_assert(kLeastStages == 3 && kMostStages == 5);
  if (stages == 5) return device::await_copies<3>();
  if (stages == 4) return device::await_copies<2>();
  device::await_copies<1>();
}

// kMost: rows of x that it has room for.
template <class Format, int kMost>
struct AnyWarp {
  using Type = DecodeWarp<Format, kMost == 1>;
};
template <class Format, int kMost>
requires(Format::kInteger) struct AnyWarp<Format, kMost> {
  using Type = IntegerWarp<Format, (kMost + 1) / 2>;
};
template <class Format, int kMost>
requires(Piece<Format>::kSpread&& kMost <= 2) struct AnyWarp<Format, kMost> {
  using Type = SpreadWarp<Format, kMost>;
};

template <class Format, int kMost>
__device__ __forceinline__ void multiply_tiles(const DecodeBlock<Format>& block, PieceReader<Format>& reader,
                                               Ring<Format>& ring,
                                               typename AnyWarp<Format, kMost>::Type& warp,
                                               TileEnd<Format, kMost == 1>& end) {
  const DecodeParams& p = block.p;
  Stage free = ring.stage();
  unsigned turn = 0;
  warp.begin();
  for (int tile = static_cast<int>(blockIdx.x); tile < p.tiles; tile += p.turn.tiles, ++turn) {
    float* partial =
        block.template of<float>(block.at.partials) + turn % kSlots * kDecodeWarps * kTileRows * block.m;
    end.enter(tile);
    NestedScales next;
    if constexpr (Format::kNested) {
      warp.nested_reader.next(p);
      if (tile + p.turn.tiles < p.tiles) next = warp.nested_reader.read(p, warp.q);
    }
    int piece = warp.warp;
    do {  // once at least: the reader counts alike
      await_stage(block.stages);
      __syncwarp();
      ring.next();
      const Stage stage = ring.stage();
      typename WarpCodes<Format>::Codes codes;
      warp.load(codes, stage);
      reader.read(free);
      warp.multiply(codes, piece, stage);
      free = stage;
      piece += kDecodeWarps;
    } while (piece < p.pieces);
    if (turn >= kSlots) end.await_place(turn);
    warp.leave(partial);
    if constexpr (Format::kNested) warp.nested = next;
    end.arrive(partial, turn);
  }
}

// kLong: where long_rows() says so. kStages: of a ring; 0: as the block's memory is laid out.
template <class Format, int kMost, bool kLong, int kStages>
__global__ void __launch_bounds__(kDecodeThreads, kBlocks)
    decode_product_kernel(const __grid_constant__ DecodeParams p) {
  extern __shared__ __align__(128) char memory[];
  device::let_next_begin();
  const DecodeBlock<Format> block(p, memory, kMost == 1 ? 1 : p.m, kStages > 0 ? kStages : p.at.stages);
  PieceReader<Format> reader(block, static_cast<int>(threadIdx.x / 32));
  Ring<Format> ring(block, static_cast<int>(threadIdx.x / 32));
  const auto read = [&] { reader.read(ring.stage()), ring.next(); };
  // The rest of the ring follows x, which would wait behind it.
  const int early = min(block.stages - 1, Piece<Format>::kEarly);
  const auto fill = [&] {
    for (int s = early; s + 1 < block.stages; ++s) read();
  };
#pragma unroll
  for (int s = 0; s < Piece<Format>::kEarly; ++s) {
    if (s < early) read();
  }
  // Weights that come while the block's memory is made ready.
  const auto map = block.read_map();
  typename AnyWarp<Format, kMost>::Type warp(block);
  if constexpr (Format::kNested) {
    warp.nested_reader.begin(p, warp.g);
    warp.nested = warp.nested_reader.read(p, warp.q);
  }
  const XStage<Format> x(block);
  TileEnd<Format, kMost == 1> end(block);
  block.begin();
  device::wait_for_previous();
  if constexpr (kLong) {
    fill();
    __syncthreads();
    x.all_long();
  } else {
    x.all([&] { fill(), block.put(map); });
  }
  multiply_tiles<Format, kMost>(block, reader, ring, warp, end);
}

template <class Format, int kMost, bool kLong = false, int kStages = 0>
bool launch_kernel(cudaStream_t stream, const DecodeParams& params) {
  const DecodeShared at = DecodeShared::of<Format>(params.m, params.columns);
  if (at.bytes == 0) return false;
  const auto kernel = decode_product_kernel<Format, kMost, kLong, kStages>;
  static const cudaError_t kAllowed = device::allow_shared_memory(kernel, kMostShared);
  check_cuda(kAllowed);
  DecodeParams p = params;
  const int most = (at.bytes <= shared_of(kBlocks) ? kBlocks : 1) * ridge::cuda::multiprocessors();
  const int blocks = std::min(p.tiles, most);
  const std::int64_t rows = std::int64_t{p.rows} * blocks;
  p.turn = {rows * p.row_bytes, rows * p.across * Format::kScaleBytes, blocks,
            static_cast<int>(rows * p.row_blocks)};
  p.at = at;
  p.ring = at.ring;
  device::launch_waiting(stream, p.early, kernel, dim3(static_cast<unsigned>(blocks)), kDecodeThreads,
                         static_cast<std::size_t>(at.bytes), p);
  return true;
}

/// Without a branch on the ring's length in the loop.
template <class Format>
bool launch_one_row(cudaStream_t stream, const DecodeParams& params) {
  const int stages = DecodeShared::of<Format>(params.m, params.columns).stages;
  if (stages == 5) return launch_kernel<Format, 1, false, 5>(stream, params);
  if (stages == 4) return launch_kernel<Format, 1, false, 4>(stream, params);
  if constexpr (Format::kHasZeros) {  // seldom: not worth six more kernels to build
    return launch_kernel<Format, static_cast<int>(kDecodeRows)>(stream, params);
  } else {
    return launch_kernel<Format, 1, false, 3>(stream, params);
  }
}

template <class Format>
bool launch_decode_product(cudaStream_t stream, const DecodeParams& params) {
  if constexpr (Format::kFactored) {
    if (long_rows<Format>(params)) return launch_kernel<Format, kMostLong, true>(stream, params);
  }
  if (params.m == 1) return launch_one_row<Format>(stream, params);
  if constexpr (Piece<Format>::kSpread || Format::kInteger) {
    if (params.m <= 2) return launch_kernel<Format, 2>(stream, params);
  }
  if constexpr (Format::kInteger) {
    if (params.m <= 4) return launch_kernel<Format, 4>(stream, params);
  }
  return launch_kernel<Format, static_cast<int>(kDecodeRows)>(stream, params);
}

}  // namespace ridge::kernels::cuda
