// Few rows of x times a matrix whose bytes are read once, at the memory's rate.
//
// Blocks take tiles of 16 rows of w in turn. One warp has the copy engine bring slabs of a tile's rows into a
// ring in shared memory; eight warps have an eighth of each slab's columns, turn codes into the 16-row
// operand of tensor cores in registers, and leave their part of the tile's sums to the warp that comes last.
// Nobody waits for all. The ring is filled before the kernels ahead in the stream have ended.
//
// Shapes as in decode_product_params.cuh.
#pragma once

#include "core/base/cuda.h"
#include "core/base/cuda_check.h"
#include "kernels/decode_product_params.cuh"
#include "kernels/device/block.cuh"
#include "kernels/device/bulk.cuh"
#include "kernels/device/mma.cuh"
#include "kernels/device/overlap.cuh"
#include "kernels/device/pack.cuh"
#include "kernels/device/silu.cuh"
#include "kernels/device/vec.cuh"

namespace ridge::kernels::cuda {

/// A place in the ring of stages, and the parity of its barriers' phase.
struct RingPlace {
  int stage = 0;
  std::uint32_t parity = 0;
  __device__ __forceinline__ void next(int stages) {
    if (++stage < stages) return;
    stage = 0;
    parity ^= 1;
  }
};

/// A block's shared memory.
template <class Format, int kHalves>
struct DecodeBlock {
  using Layout = typename Format::Layout;
  static constexpr int kPitch = DecodeShared::pitch<Format>();
  const DecodeParams& p;
  const DecodeShared& at;
  char* memory;
  std::uint32_t base;

  __device__ __forceinline__ DecodeBlock(const DecodeParams& params, const DecodeShared& places, char* shared)
      : p(params), at(places), memory(shared), base(device::shared_address(shared)) {}

  __device__ __forceinline__ std::uint32_t address(int offset) const {
    return base + static_cast<std::uint32_t>(offset);
  }
  __device__ __forceinline__ std::uint32_t full(int stage) const { return address(at.barriers + 16 * stage); }
  __device__ __forceinline__ std::uint32_t empty(int stage) const { return full(stage) + 8; }
  __device__ __forceinline__ std::uint32_t stage(int stage) const {
    return address(at.ring + stage * kTileRows * kPitch);
  }
  __device__ __forceinline__ std::uint32_t scales(int slot, int half) const {
    return address(at.scales + (slot * kHalves + half) * at.slot_bytes);
  }
  template <class T>
  __device__ __forceinline__ T* of(int offset) const {
    return reinterpret_cast<T*>(memory + offset);
  }

  __device__ __forceinline__ void begin() const {
    if (threadIdx.x == 0) {
      for (int s = 0; s < at.stages; ++s) {
        device::begin_barrier(full(s), 1);
        device::begin_barrier(empty(s), kDecodeWarps);
      }
      device::fence_barriers();
    }
    if (static_cast<int>(threadIdx.x) < at.slots) of<unsigned>(at.counters)[threadIdx.x] = 0;
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

/// The warp that reads: slabs of the block's tiles, one after the other.
template <class Format, int kHalves>
struct SlabReader {
  using Block = DecodeBlock<Format, kHalves>;
  const Block& block;
  std::uint64_t policy;
  RingPlace place;
  int tile, half = 0, slab = 0, slot = 0;

  __device__ __forceinline__ explicit SlabReader(const Block& b)
      : block(b), policy(device::read_once_policy()), tile(static_cast<int>(blockIdx.x)) {}

  /// At most `count` slabs, as they find room.
  __device__ __forceinline__ void read(int count) {
    for (; count > 0 && tile < block.p.tiles; --count) {
      device::await(block.empty(place.stage), place.parity ^ 1);
      read_one();
      place.next(block.at.stages);
      if (++slab < block.p.slabs) continue;
      slab = 0;
      if (++half < kHalves) continue;
      half = 0;
      tile += static_cast<int>(gridDim.x);
      if (++slot == block.at.slots) slot = 0;
    }
  }

 private:
  __device__ __forceinline__ void read_one() {
    const DecodeParams& p = block.p;
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int begin = slab * kSlabBytes, bytes = min(p.used_bytes - begin, kSlabBytes);
    const bool with_scales = slab == 0 && p.scale.bytes > 0;
    const std::uint32_t barrier = block.full(place.stage);
    if (lane == 0) device::arrive_expecting(barrier, kTileRows * bytes + (with_scales ? p.scale.bytes : 0));
    __syncwarp();
    if (lane < kTileRows) {
      const std::int64_t row = std::int64_t{tile} * kTileRows + half * p.half_rows + lane;
      device::copy_bulk(block.stage(place.stage) + static_cast<std::uint32_t>(lane * Block::kPitch),
                        p.codes + row * p.row_bytes + begin, bytes, barrier, policy);
    } else if (lane == kTileRows && with_scales) {
      const std::int64_t of = (std::int64_t{tile} + half * (p.half_rows / kTileRows)) >> p.scale.tile_shift;
      const std::uint32_t to = block.scales(slot, half);
      device::copy_bulk(to, p.scale.scales + of * p.scale.step, p.scale.scale_bytes, barrier, policy);
      const int zeros = p.scale.bytes - p.scale.scale_bytes;
      if (zeros > 0)
        device::copy_bulk(to + static_cast<std::uint32_t>(p.scale.scale_bytes), p.scale.zeros + of * zeros,
                          zeros, barrier, policy);
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
    for (int w = 0; w <= kDecodeWarps; ++w) total += sums[w];
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

/// A warp that multiplies.
template <class Format, int kHalves>
struct DecodeWarp {
  using Layout = typename Format::Layout;
  using Block = DecodeBlock<Format, kHalves>;
  static constexpr int kTogether = Format::kTogether;
  static constexpr int kUnits = kSlabBytes / Layout::kBytes;  // of a slab
  static constexpr int kBatch = 8 / Layout::kWords;           // units that are read at once
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

  /// Codes of rows g and g + 8.
  struct Codes {
    std::uint32_t run[kBatch][2][Layout::kWords];
  };
  __device__ __forceinline__ void load(Codes& to, std::uint32_t stage, int unit, int end) const {
#pragma unroll
    for (int u = 0; u < kBatch; ++u) {
      if (unit + u >= end) continue;
#pragma unroll
      for (int h = 0; h < 2; ++h)
        load_words(to.run[u][h],
                   stage + static_cast<std::uint32_t>((g + 8 * h) * Block::kPitch +
                                                      (unit + u) * Layout::kBytes + q * 4 * Layout::kWords));
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

  // `unit` of the row, whose scales are at `scales`.
  __device__ __forceinline__ void multiply(const std::uint32_t (&run)[2][Layout::kWords], int unit,
                                           std::uint32_t scales) {
    float own[4] = {};
    float(&sum)[4] = Format::kScaledAtEnd ? total : own;
#pragma unroll
    for (int e = 0; e < Layout::kEights; ++e) {
      const Eight low = Format::decode(run[0], e, column), high = Format::decode(run[1], e, column);
      std::uint32_t b[4];
      load_words(
          b, x_row + static_cast<std::uint32_t>(unit * 2 * Layout::kColumns + 16 * Layout::place_of(0, e)));
      device::mma_16816(sum, low, high, 0, b[0], b[1]);
      device::mma_16816(sum, low, high, 2, b[2], b[3]);
    }
    if constexpr (Format::kHasNan) {
#pragma unroll
      for (int w = 0; w < Layout::kWords; ++w) {
        nan[0] |= nan_e4m3(run[0][w]);
        nan[1] |= nan_e4m3(run[1][w]);
      }
    }
    if constexpr (!Format::kScaledAtEnd) add(own, unit, scales);
  }

  // total += scale (sum - bias times the unit's sum of x)
  __device__ __forceinline__ void add(const float (&sum)[4], int unit, std::uint32_t scales) {
    float of_x[2] = {};
    if constexpr (Format::kBiased)
      asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];"
                   : "=f"(of_x[0]), "=f"(of_x[1])
                   : "r"(sums + static_cast<std::uint32_t>(32 * unit)));
    const int group = unit >> block.p.scale.unit_shift;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int at = (g + 8 * h) * block.p.scale.across + group;
      const float scale = scale_of(scales, at, group, h);
      float bias = kInt4Bias + 8;
      if constexpr (Format::kHasZeros)
        bias = kInt4Bias + static_cast<float>(load_byte(
                               scales + static_cast<std::uint32_t>(block.p.scale.scale_bytes + at)));
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
  __device__ __forceinline__ float scale_of(std::uint32_t scales, int at, int group, int h) const {
    if constexpr (Format::kNested) {  // two roundings, as elsewhere
      const std::uint32_t code = load_byte(scales + static_cast<std::uint32_t>(at));
      const std::uint32_t map = block.address(block.at.map) + 4 * code;
      const float part = __uint_as_float(device::load_shared(map));
      return __fadd_rn(__fmul_rn(part, nested.of(h, group)), offset);
    } else if constexpr (Format::kNarrow) {
      std::uint16_t bits;
      asm volatile("ld.shared.u16 %0, [%1];" : "=h"(bits) : "r"(scales + 2 * static_cast<std::uint32_t>(at)));
      return __uint_as_float(static_cast<std::uint32_t>(bits) << 16);
    } else {
      return __uint_as_float(device::load_shared(scales + 4 * static_cast<std::uint32_t>(at)));
    }
  }

  // This warp's columns of a slab.
  __device__ __forceinline__ void slab(const RingPlace& place, int slab, std::uint32_t scales) {
    const int first = slab * kUnits, count = min(kUnits, block.p.units - first);
    const int each = (count / kTogether + kDecodeWarps - 1) / kDecodeWarps * kTogether;
    const int begin = warp * each, end = min(begin + each, count);
    const std::uint32_t stage = block.stage(place.stage);
    device::await(block.full(place.stage), place.parity);
    for (int unit = begin; unit < end; unit += kBatch) {
      Codes codes;
      load(codes, stage, unit, end);
#pragma unroll
      for (int u = 0; u < kBatch; ++u) {
        if (unit + u < end) multiply(codes.run[u], first + unit + u, scales);
      }
    }
    __syncwarp();
    if (threadIdx.x % 32 == 0) device::arrive(block.empty(place.stage));
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

/// What the last warp of a tile does.
template <class Format, int kHalves>
struct TileEnd {
  const DecodeBlock<Format, kHalves>& block;

  __device__ __forceinline__ float sum(const float* partial, int half, int m, int row, int slot) const {
    const DecodeParams& p = block.p;
    float part[kDecodeWarps];
#pragma unroll
    for (int w = 0; w < kDecodeWarps; ++w)
      part[w] = partial[((half * kDecodeWarps + w) * p.m + m) * kTileRows + row];
    float total = ((part[0] + part[1]) + (part[2] + part[3])) + ((part[4] + part[5]) + (part[6] + part[7]));
    if constexpr (Format::kScaledAtEnd && !Format::kDense)
      total *= __uint_as_float(
          device::load_shared(block.scales(slot, half) + 4 * static_cast<std::uint32_t>(row)));
    return total;
  }
  __device__ __forceinline__ float with_bias(float total, std::int64_t row) const {
    const float rounded = device::load(device::round_to<bf16>(total));
    if (block.p.bias == nullptr) return rounded;
    return device::load(device::round_to<bf16>(rounded + device::load(block.p.bias[row])));
  }
  __device__ __forceinline__ void write(const float* partial, int tile, int slot) const {
    const DecodeParams& p = block.p;
    for (int i = static_cast<int>(threadIdx.x) % 32; i < kTileRows * p.m; i += 32) {
      const int m = i / kTileRows, row = i % kTileRows, output = tile * kTileRows + row;
      bf16* to = p.y + m * p.y_stride + output;
      float before = 0;
      if (p.end == ProductEnd::add) before = device::load(*to);
      float value = with_bias(sum(partial, 0, m, row, slot), output);
      if constexpr (kHalves == 2) {
        const float up = with_bias(sum(partial, 1, m, row, slot), output + p.half_rows);
        value = device::load(device::round_to<bf16>(device::silu_of<bf16>(value))) * up;
      }
      *to = device::round_to<bf16>(p.end == ProductEnd::add ? before + value : value);
    }
  }
};

template <class Format, int kHalves>
__device__ __forceinline__ void multiply_tiles(const DecodeBlock<Format, kHalves>& block) {
  const DecodeParams& p = block.p;
  DecodeWarp<Format, kHalves> warp(block);
  const TileEnd<Format, kHalves> end{block};
  RingPlace place;
  int slot = 0;
  if constexpr (Format::kNested)
    warp.nested.load(p.scale, std::int64_t{blockIdx.x} * kTileRows, warp.g, true);
  for (int tile = static_cast<int>(blockIdx.x); tile < p.tiles; tile += static_cast<int>(gridDim.x)) {
    constexpr int kFloats = kDecodeWarps * kTileRows;
    float* partial = block.template of<float>(block.at.partials) + slot * kHalves * kFloats * p.m;
    for (int half = 0; half < kHalves; ++half) {
      NestedScales next;
      if constexpr (Format::kNested) {
        const bool last = half + 1 == kHalves;
        const int to = last ? tile + static_cast<int>(gridDim.x) : tile;
        next.load(p.scale, std::int64_t{to} * kTileRows + (last ? 0 : p.half_rows), warp.g, to < p.tiles);
      }
      for (int slab = 0; slab < p.slabs; ++slab) {
        warp.slab(place, slab, block.scales(slot, half));
        place.next(block.at.stages);
      }
      warp.leave(partial + half * kFloats * p.m);
      if constexpr (Format::kNested) warp.nested = next;
    }
    __syncwarp();
    unsigned arrived = 0;
    unsigned* counter = block.template of<unsigned>(block.at.counters) + slot;
    if (threadIdx.x % 32 == 0) {
      __threadfence_block();
      arrived = atomicAdd(counter, 1u);
    }
    if (__shfl_sync(0xFFFFFFFFu, arrived, 0) == kDecodeWarps - 1) {
      __threadfence_block();
      if (threadIdx.x % 32 == 0) *counter = 0;
      end.write(partial, tile, slot);
    }
    if (++slot == block.at.slots) slot = 0;
  }
}

template <class Format, int kHalves>
__global__ void __launch_bounds__(kDecodeThreads, 2)
    decode_product_kernel(const __grid_constant__ DecodeParams p, const __grid_constant__ DecodeShared at) {
  extern __shared__ __align__(128) char memory[];
  device::let_next_begin();
  const DecodeBlock<Format, kHalves> block(p, at, memory);
  block.begin();
  __syncthreads();
  SlabReader<Format, kHalves> reader(block);
  const bool reads = threadIdx.x / 32 == kDecodeWarps;
  if (reads) reader.read(at.stages);
  const XStage<Format, kHalves> x(block);
  device::wait_for_previous();
  x.all();
  __syncthreads();
  if (reads) return reader.read(1 << 30);
  multiply_tiles<Format, kHalves>(block);
}

template <class Format, int kHalves>
bool launch_halves(cudaStream_t stream, const DecodeParams& params) {
  const DecodeShared at = DecodeShared::of<Format, kHalves>(params);
  if (at.bytes == 0) return false;
  const auto kernel = decode_product_kernel<Format, kHalves>;
  static const cudaError_t kAllowed =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kMostShared);
  check_cuda(kAllowed);
  const int blocks = std::min(params.tiles, ridge::cuda::multiprocessors());
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
