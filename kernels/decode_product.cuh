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
#include "kernels/decode_product_params.cuh"
#include "kernels/device/async_copy.cuh"
#include "kernels/device/barrier.cuh"
#include "kernels/device/block.cuh"
#include "kernels/device/mma.cuh"
#include "kernels/device/overlap.cuh"
#include "kernels/device/pack.cuh"
#include "kernels/device/silu.cuh"
#include "kernels/device/vec.cuh"

namespace ridge::kernels::cuda {

/// A block's shared memory.
template <class Format, int kHalves>
struct DecodeBlock {
  using Layout = typename Format::Layout;
  const DecodeParams& p;
  const DecodeShared& at;
  char* memory;
  std::uint32_t base;

  __device__ __forceinline__ DecodeBlock(const DecodeParams& params, const DecodeShared& places, char* shared)
      : p(params), at(places), memory(shared), base(device::shared_address(shared)) {}

  __device__ __forceinline__ std::uint32_t address(int offset) const {
    return base + static_cast<std::uint32_t>(offset);
  }
  __device__ __forceinline__ std::uint32_t ring(int warp) const {
    return address(at.ring + warp * kStages * Piece<Format>::kStageBytes);
  }
  template <class T>
  __device__ __forceinline__ T* of(int offset) const {
    return reinterpret_cast<T*>(memory + offset);
  }
  /// Barriers of a place for a tile's parts: all parts have come; they are added up.
  __device__ __forceinline__ std::uint32_t full(unsigned slot) const {
    return address(at.barriers) + 16 * slot;
  }
  __device__ __forceinline__ std::uint32_t empty(unsigned slot) const { return full(slot) + 8; }
  __device__ __forceinline__ void begin() const {
    if (threadIdx.x < kSlots) {
      device::begin_barrier(full(threadIdx.x), kDecodeWarps);
      device::begin_barrier(empty(threadIdx.x), 1);
    }
    if constexpr (Format::kTable) {
      const std::uint32_t table = device::pair_table(base);
      for (int i = static_cast<int>(threadIdx.x); i < device::kPairTableBytes / 16; i += kDecodeThreads) {
        const int byte = i / 8;
        const std::uint32_t pair = p.values[byte >> 4] | static_cast<std::uint32_t>(p.values[byte & 15])
                                                             << 16;
        asm volatile("st.shared.v4.u32 [%0], {%1, %1, %1, %1};" ::"r"(table + 16 * i), "r"(pair) : "memory");
      }
    }
    if constexpr (Format::kNested) {
      if (threadIdx.x < 256) of<float>(at.map)[threadIdx.x] = __ldg(p.scale.map + threadIdx.x);
    }
  }
};

/// Which 16 bytes of a row of a stage hold its chunk `chunk`: rows that are read together lie in different
/// banks.
template <int kWords>
__device__ __forceinline__ int chunk_place(int row, int chunk) {
  constexpr int kRows = 8 / (2 * kWords) * 2;  // 1: 8 rows of 16 bytes, 2: 4 of 32, 4: 2 of 64
  return chunk ^ (row % kRows * (8 / kRows));
}

/// A warp's ring: its stages one after the other, in shared memory.
template <class Format>
struct Ring {
  static constexpr std::uint32_t kBytes = Piece<Format>::kStageBytes;
  std::uint32_t begin, stage;

  __device__ __forceinline__ explicit Ring(std::uint32_t at) : begin(at), stage(at) {}
  __device__ __forceinline__ void next() {
    stage += kBytes;
    if (stage == begin + kStages * kBytes) stage = begin;
  }
};

/// Copies a warp's pieces, tile after tile, into its ring.
template <class Format, int kHalves>
struct PieceReader {
  using Of = Piece<Format>;
  static constexpr int kStep = kDecodeWarps * kPieceBytes;  // bytes of a row from piece to piece
  const DecodeParams& p;
  std::uint64_t policy;
  Ring<Format> ring;
  int tile, half = 0, warp, lane;
  std::uint32_t place;            // in a stage, of this lane's first chunk
  int left = 0, scales_left = 0;  // bytes of the row from where the lane reads on
  const std::uint8_t* from;       // chunk lane % 8 of row lane / 8 of the next piece
  const std::uint8_t* scales = nullptr;
  const std::uint8_t* zeros = nullptr;

  __device__ __forceinline__ PieceReader(const DecodeBlock<Format, kHalves>& block, int of)
      : p(block.p),
        policy(device::read_once_policy()),
        ring(block.ring(of)),
        tile(static_cast<int>(blockIdx.x)),
        warp(of),
        lane(static_cast<int>(threadIdx.x) % 32) {
    const int row = lane / 8;
    place = static_cast<std::uint32_t>(row * kPieceBytes +
                                       16 * chunk_place<Format::Layout::kWords>(row, lane % 8));
    enter();
  }
  /// Queues the next piece, or nothing after the last, as a group of copies.
  __device__ __forceinline__ void read() {
    const int chunk = lane % 8 * 16;
    if (tile < p.tiles && left + chunk > 0) copy();
    device::end_copies();
    ring.next();
    from += kStep;
    left -= kStep;
    scales += kDecodeWarps * Of::kScaleBytes;
    scales_left -= kDecodeWarps * Of::kScaleBytes;
    if (left + chunk > 0) return;
    if (++half == kHalves) half = 0, tile += static_cast<int>(gridDim.x);
    enter();
  }

 private:
  __device__ __forceinline__ void enter() {
    const std::int64_t row = std::int64_t{tile} * kTileRows + half * p.half_rows;
    const int at = warp * kPieceBytes + lane % 8 * 16;
    from = p.codes + (row + lane / 8) * p.row_bytes + at;
    left = p.used_bytes - at;
    if constexpr (Of::kScales > 0) {
      const std::int64_t first = ((row + (Of::kTiles ? 0 : lane)) >> p.scale.row_shift) * p.scale.across;
      scales = p.scale.scales + first * Format::kScaleBytes + warp * Of::kScaleBytes;
      scales_left = static_cast<int>(p.scale.across) * Format::kScaleBytes - warp * Of::kScaleBytes;
      if constexpr (Format::kHasZeros) zeros = p.scale.zeros + first;
    }
  }
  __device__ __forceinline__ void copy() const {
    if (left > 0) {
      const std::int64_t step = 4 * p.row_bytes;
      const std::uint8_t* source = from;
#pragma unroll
      for (int i = 0; i < kTileRows / 4; ++i, source += step) {
        const std::uint32_t to = Format::Layout::kWords == 1 && i % 2 == 1 ? place ^ 64u : place;
        device::copy_16(ring.stage + to + static_cast<std::uint32_t>(i * 4 * kPieceBytes), source, policy);
      }
    }
    if constexpr (Of::kScales > 0) {
      if (lane < Of::kScaleRows) copy_scales(ring.stage + kTileRows * kPieceBytes);
    }
  }
  __device__ __forceinline__ void copy_scales(std::uint32_t to) const {
    constexpr int kEach = Of::kScaleBytes < 16 ? Of::kScaleBytes : 16;
#pragma unroll
    for (int i = 0; i < Of::kScaleBytes; i += kEach) {
      if (i < scales_left)
        device::copy_small<kEach>(to + static_cast<std::uint32_t>(lane * Of::kScaleBytes + i), scales + i);
    }
    if constexpr (Format::kHasZeros) {
      const int first = (static_cast<int>(p.scale.across) - scales_left / Format::kScaleBytes);
      device::copy_small<Of::kZeroBytes>(
          to + static_cast<std::uint32_t>(kTileRows * Of::kScaleBytes + lane * Of::kZeroBytes),
          zeros + first / Of::kZeroBytes * Of::kZeroBytes);
    }
  }
};

/// x into shared memory in the decoders' order, normalized where that is wanted, with sums of its units.
template <class Format, int kHalves>
struct XStage {
  using Layout = typename Format::Layout;
  using Pack = device::Pack<bf16>;
  static constexpr int kEach = 4;  // packs of a thread at once
  static constexpr int kStep = kEach * kDecodeThreads;
  const DecodeBlock<Format, kHalves>& block;
  Pack weight[kEach];  // of the norm

  __device__ __forceinline__ explicit XStage(const DecodeBlock<Format, kHalves>& b) : block(b) {
    if (block.p.norm != nullptr) load(weight, block.p.norm, 0);
  }
  __device__ __forceinline__ void load(Pack (&to)[kEach], const bf16* from, int base) const {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int pack = base + i * kDecodeThreads + static_cast<int>(threadIdx.x);
      if (8 * pack < block.p.columns) to[i] = device::load_pack(from + 8 * pack);
    }
  }
  __device__ void all() const {
    const DecodeParams& p = block.p;
    for (int row = 0; row < p.m; ++row) {
      for (int base = 0; 8 * base < p.columns; base += kStep) {
        Pack x[kEach] = {};
        load(x, p.x + row * p.x_stride, base);
        if (p.norm != nullptr) normalize(x);
        for (int i = 0; i < kEach; ++i) {
          const int pack = base + i * kDecodeThreads + static_cast<int>(threadIdx.x);
          if (8 * (pack - static_cast<int>(threadIdx.x) % 32) < p.columns) store(x[i], row, pack);
        }
      }
    }
  }

 private:
  __device__ __forceinline__ void normalize(Pack (&x)[kEach]) const {
    float squares = 0;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
#pragma unroll
      for (int k = 0; k < 8; ++k) squares += x[i][k] * x[i][k];
    }
    float* sums = block.template of<float>(block.at.norm);
    squares = device::warp_all<device::Sum>(squares);
    __syncthreads();
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = squares;
    __syncthreads();
    float total = 0;
#pragma unroll
    for (int w = 0; w < kDecodeWarps; ++w) total += sums[w];
    const float inverse = rsqrtf(total * (1.0f / static_cast<float>(block.p.columns)) + block.p.eps);
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      float y[8];
#pragma unroll
      for (int k = 0; k < 8; ++k) y[k] = x[i][k] * inverse;
      const Pack scaled = Pack::of(y);
#pragma unroll
      for (int k = 0; k < 8; ++k) y[k] = scaled[k] * weight[i][k];
      x[i] = Pack::of(y);
    }
  }
  __device__ __forceinline__ void store(const Pack& x, int row, int pack) const {
    constexpr int kOfUnit = Layout::kColumns / 8;
    const int unit = pack / kOfUnit, eight = pack % kOfUnit;
    const bool inside = 8 * pack < block.p.columns;
    if (inside)
      *block.template of<uint4>(block.at.x + row * x_row_bytes(block.p.columns) +
                                unit * 2 * Layout::kColumns + 16 * Layout::place(eight)) =
          device::in_order<Format::kOrder>(x.raw);
    if constexpr (Format::kBiased) {
      float sum = ((x[0] + x[1]) + (x[2] + x[3])) + ((x[4] + x[5]) + (x[6] + x[7]));
#pragma unroll
      for (int step = kOfUnit / 2; step > 0; step /= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, step);
      if (inside && eight == 0) block.template of<float>(block.at.sums)[unit * 8 + row] = sum;
    }
  }
};

/// Scales of the second level for a tile's rows of a lane: of a row at most two.
struct NestedScales {
  float first[2], second[2];
  int left[2];  // blocks of the row up to the second

  __device__ __forceinline__ void load(const DecodeScales& scale, std::int64_t row, int g, bool there) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const std::int64_t block = scale.first_block + (row + g + 8 * h) * scale.row_blocks;
      left[h] = static_cast<int>(kNestedBlock - block % kNestedBlock);
      if (!there) continue;
      const float* at = scale.nested + block / kNestedBlock;
      first[h] = __ldg(at);
      second[h] = left[h] < scale.across ? __ldg(at + 1) : 0.0f;
    }
  }
  __device__ __forceinline__ float of(int h, int group) const {
    return group < left[h] ? first[h] : second[h];
  }
};

/// What a warp has of a tile.
template <class Format, int kHalves>
struct DecodeWarp {
  using Layout = typename Format::Layout;
  using Of = Piece<Format>;
  using Block = DecodeBlock<Format, kHalves>;
  const Block& block;
  int warp, q, g;
  std::uint32_t x_row, sums, column;
  float offset = 0;
  float total[4] = {};
  std::uint32_t nan[2] = {};
  NestedScales nested;

  __device__ __forceinline__ explicit DecodeWarp(const Block& b)
      : block(b),
        warp(static_cast<int>(threadIdx.x) / 32),
        q(static_cast<int>(threadIdx.x) % 4),
        g(static_cast<int>(threadIdx.x) % 32 / 4) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    // Rows beyond M repeat the last: what they give is not written.
    x_row = b.address(b.at.x + min(g, b.p.m - 1) * x_row_bytes(b.p.columns) + 16 * q);
    sums = b.address(b.at.sums + 8 * q);
    column = Format::kTable ? device::pair_table(b.base) + 4 * static_cast<std::uint32_t>(lane) : 0;
    if constexpr (Format::kNested) offset = __ldg(b.p.scale.offset);
  }

  /// Codes of rows g and g + 8, by units.
  struct Codes {
    std::uint32_t run[Of::kUnits][2][Layout::kWords];
  };
  __device__ __forceinline__ void load(Codes& to, std::uint32_t stage) const {
#pragma unroll
    for (int u = 0; u < Of::kUnits; ++u) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int row = g + 8 * h, byte = u * Layout::kBytes + q * 4 * Layout::kWords;
        const int place = 16 * chunk_place<Layout::kWords>(row, byte / 16) + byte % 16;
        load_words(to.run[u][h], stage + static_cast<std::uint32_t>(row * kPieceBytes + place));
      }
    }
  }
  template <int kWords>
  static __device__ __forceinline__ void load_words(std::uint32_t (&to)[kWords], std::uint32_t from) {
    if constexpr (kWords == 4) {
      asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                   : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                   : "r"(from));
    } else if constexpr (kWords == 2) {
      asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(to[0]), "=r"(to[1]) : "r"(from));
    } else {
      to[0] = device::load_shared(from);
    }
  }

  /// The piece that lies in `stage`.
  __device__ __forceinline__ void multiply(const Codes& codes, int piece, std::uint32_t stage) {
    const std::uint32_t scales = stage + kTileRows * kPieceBytes;
    const int left = block.p.units - piece * Of::kUnits;
    if (left >= Of::kUnits) {  // no branches: units overlap
#pragma unroll
      for (int u = 0; u < Of::kUnits; ++u) multiply(codes.run[u], piece, u, scales);
    } else {
#pragma unroll
      for (int u = 0; u < Of::kUnits; ++u) {
        if (u < left) multiply(codes.run[u], piece, u, scales);
      }
    }
  }

 private:
  __device__ __forceinline__ void multiply(const std::uint32_t (&run)[2][Layout::kWords], int piece, int u,
                                           std::uint32_t scales) {
    const int unit = piece * Of::kUnits + u;
    float sum[2][4] = {};  // two chains of sums
#pragma unroll
    for (int e = 0; e < Layout::kEights; ++e) {
      const Eight low = Format::decode(run[0], e, column), high = Format::decode(run[1], e, column);
      std::uint32_t b[4];
      load_words(
          b, x_row + static_cast<std::uint32_t>(unit * 2 * Layout::kColumns + 16 * Layout::place_of(0, e)));
      device::mma_16816(sum[0], low, high, 0, b[0], b[1]);
      device::mma_16816(sum[1], low, high, 2, b[2], b[3]);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) sum[0][i] += sum[1][i];
    if constexpr (Format::kHasNan) {
#pragma unroll
      for (int w = 0; w < Layout::kWords; ++w) {
        nan[0] |= nan_e4m3(run[0][w]);
        nan[1] |= nan_e4m3(run[1][w]);
      }
    }
    if constexpr (Format::kScaledAtEnd) {
#pragma unroll
      for (int i = 0; i < 4; ++i) total[i] += sum[0][i];
    } else {
      add(sum[0], piece, u, scales);
    }
  }

  // total += scale (sum - bias times the unit's sum of x)
  __device__ __forceinline__ void add(const float (&sum)[4], int piece, int u, std::uint32_t scales) {
    const int unit = piece * Of::kUnits + u;
    float of_x[2] = {};
    if constexpr (Format::kBiased)
      asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];"
                   : "=f"(of_x[0]), "=f"(of_x[1])
                   : "r"(sums + static_cast<std::uint32_t>(32 * unit)));
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = Of::kTiles ? 0 : g + 8 * h;
      const float scale =
          scale_of(scales + static_cast<std::uint32_t>(row * Of::kScaleBytes), Of::kTiles ? 0 : u, unit, h);
      float bias = kInt4Bias + 8;
      if constexpr (Format::kHasZeros) {
        const int at = kTileRows * Of::kScaleBytes + row * Of::kZeroBytes + unit % Of::kZeroBytes;
        bias = kInt4Bias + static_cast<float>(load_byte(scales + static_cast<std::uint32_t>(at)));
      }
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const float value = Format::kBiased ? fmaf(-bias, of_x[c], sum[2 * h + c]) : sum[2 * h + c];
        total[2 * h + c] = fmaf(scale, value, total[2 * h + c]);
      }
    }
  }
  static __device__ __forceinline__ std::uint32_t load_byte(std::uint32_t from) {
    std::uint32_t byte;
    asm volatile("ld.shared.u8 %0, [%1];" : "=r"(byte) : "r"(from));
    return byte;
  }
  // Number `at` of those at `from`, of `group` of the row.
  __device__ __forceinline__ float scale_of(std::uint32_t from, int at, int group, int h) const {
    if constexpr (Format::kNested) {  // two roundings, as elsewhere
      const std::uint32_t code = load_byte(from + static_cast<std::uint32_t>(at));
      const std::uint32_t map = block.address(block.at.map) + 4 * code;
      const float part = __uint_as_float(device::load_shared(map));
      return __fadd_rn(__fmul_rn(part, nested.of(h, group)), offset);
    } else if constexpr (Format::kNarrow) {
      std::uint16_t bits;
      asm volatile("ld.shared.u16 %0, [%1];" : "=h"(bits) : "r"(from + 2 * static_cast<std::uint32_t>(at)));
      return __uint_as_float(static_cast<std::uint32_t>(bits) << 16);
    } else {
      return __uint_as_float(device::load_shared(from + 4 * static_cast<std::uint32_t>(at)));
    }
  }
  // A NaN among a row's codes makes all of its sums NaN.
  __device__ __forceinline__ void poison() {
    if constexpr (Format::kHasNan) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        std::uint32_t any = nan[h] & kNanBits;
        any |= __shfl_xor_sync(0xFFFFFFFFu, any, 1);
        any |= __shfl_xor_sync(0xFFFFFFFFu, any, 2);
        if (any != 0) total[2 * h] = total[2 * h + 1] = __uint_as_float(0x7FC00000u);
        nan[h] = 0;
      }
    }
  }

 public:
  // This warp's sums of a tile, [M, 16].
  __device__ __forceinline__ void leave(float* partial) {
    poison();
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int row = g + e / 2 * 8, column = 2 * q + e % 2;
      if (column < block.p.m) partial[(warp * block.p.m + column) * kTileRows + row] = total[e];
      total[e] = 0;
    }
  }
};

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
      const std::int64_t row = std::int64_t{tile} * kTileRows + lane % kTileRows;
      if (lane < kHalves * kTileRows)
        row_scale =
            __ldg(reinterpret_cast<const float*>(p.scale.scales) + row + lane / kTileRows * p.half_rows);
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
  __device__ __forceinline__ float with_bias(float total, std::int64_t row) const {
    const float rounded = device::load(device::round_to<bf16>(total));
    if (block.p.bias == nullptr) return rounded;
    return device::load(device::round_to<bf16>(rounded + device::load(block.p.bias[row])));
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
      float value = with_bias(sum(partial, 0, i, scale), output);
      if constexpr (kHalves == 2) {
        const float up = with_bias(sum(partial, 1, i, up_scale), output + p.half_rows);
        value = device::load(device::round_to<bf16>(device::silu_of<bf16>(value))) * up;
      }
      if (p.end == ProductEnd::add) value += base == 0 ? before : device::load(*to);
      *to = device::round_to<bf16>(value);
    }
  }
};

template <class Format, int kHalves>
__device__ __forceinline__ void multiply_tiles(const DecodeBlock<Format, kHalves>& block,
                                               PieceReader<Format, kHalves>& reader) {
  const DecodeParams& p = block.p;
  DecodeWarp<Format, kHalves> warp(block);
  TileEnd<Format, kHalves> end(block);
  Ring<Format> ring(block.ring(warp.warp));
  unsigned turn = 0;
  if constexpr (Format::kNested)
    warp.nested.load(p.scale, std::int64_t{blockIdx.x} * kTileRows, warp.g, true);
  for (int tile = static_cast<int>(blockIdx.x); tile < p.tiles; tile += static_cast<int>(gridDim.x), ++turn) {
    constexpr int kFloats = kDecodeWarps * kTileRows;
    float* partial = block.template of<float>(block.at.partials) + turn % kSlots * kHalves * kFloats * p.m;
    end.enter(tile);
    for (int half = 0; half < kHalves; ++half) {
      NestedScales next;
      if constexpr (Format::kNested) {
        const bool last = half + 1 == kHalves;
        const int to = last ? tile + static_cast<int>(gridDim.x) : tile;
        next.load(p.scale, std::int64_t{to} * kTileRows + (last ? 0 : p.half_rows), warp.g, to < p.tiles);
      }
      int piece = warp.warp;
      do {  // once at least: the reader counts alike
        device::await_copies<kStages - 2>();
        __syncwarp();
        typename DecodeWarp<Format, kHalves>::Codes codes;
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

template <class Format, int kHalves>
__global__ void __launch_bounds__(kDecodeThreads, kBlocks)
    decode_product_kernel(const __grid_constant__ DecodeParams p, const __grid_constant__ DecodeShared at) {
  extern __shared__ __align__(128) char memory[];
  device::let_next_begin();
  const DecodeBlock<Format, kHalves> block(p, at, memory);
  PieceReader<Format, kHalves> reader(block, static_cast<int>(threadIdx.x) / 32);
  for (int s = 1; s < kStages; ++s) reader.read();
  block.begin();
  const XStage<Format, kHalves> x(block);
  device::wait_for_previous();
  x.all();
  __syncthreads();
  multiply_tiles<Format, kHalves>(block, reader);
}

template <class Format, int kHalves>
bool launch_halves(cudaStream_t stream, const DecodeParams& params) {
  const DecodeShared at = DecodeShared::of<Format, kHalves>(params);
  if (at.bytes == 0) return false;
  const auto kernel = decode_product_kernel<Format, kHalves>;
  static const cudaError_t kAllowed = device::allow_shared_memory(kernel, kMostShared);
  check_cuda(kAllowed);
  const int blocks = std::min(params.tiles, kBlocks * ridge::cuda::multiprocessors());
  device::launch_overlapped(stream, kernel, dim3(static_cast<unsigned>(blocks)), kDecodeThreads,
                            static_cast<std::size_t>(at.bytes), params, at);
  return true;
}

template <class Format>
bool launch_decode_product(cudaStream_t stream, const DecodeParams& params) {
  if (params.end == ProductEnd::swiglu) return launch_halves<Format, 2>(stream, params);
  return launch_halves<Format, 1>(stream, params);
}

}  // namespace ridge::kernels::cuda
