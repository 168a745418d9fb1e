// Few rows of x in bf16 times codes, on tensor cores: codes are read once in their stored order and become
// the 16-row operand in registers, x is the other one, from shared memory.
//
// A cluster of C blocks has C tiles of 16 rows of w at a time. A block keeps its 1 / C of x's columns for
// good; its 16 warps are kParts / C parts of these columns for C tiles. Block r of the cluster adds up tile
// r. The cut into parts depends on K alone, so that the bits of a row of y are the same for any M and C.
//
// Shapes as in quant_mma_params.cuh.
#pragma once

#include <cooperative_groups.h>

#include <algorithm>

#include "core/base/cuda.h"
#include "core/base/cuda_check.h"
#include "kernels/device/mma.cuh"
#include "kernels/device/vec.cuh"
#include "kernels/quant_mma_params.cuh"

namespace ridge::kernels::cuda {

/// Words that are read once. A line of memory comes as a whole.
template <int kWords>
__device__ __forceinline__ void read_codes(const std::uint8_t* from, std::uint32_t (&to)[kWords]) {
  if constexpr (kWords == 4) {
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "l"(from));
  } else if constexpr (kWords == 2) {
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v2.u32 {%0, %1}, [%2];"
                 : "=r"(to[0]), "=r"(to[1])
                 : "l"(from));
  } else {
    to[0] = __ldg(reinterpret_cast<const std::uint32_t*>(from));
  }
}

/// What a lane has read of kTogether units, of rows lane / 4 and lane / 4 + 8.
template <class Format>
struct UnitRegisters {
  static constexpr int kTogether = Format::kTogether;
  std::uint32_t codes[kTogether][2][Format::Layout::kWords];
  std::uint32_t scale[2][Format::kNested ? 1 : kTogether];  // its bits; nested formats: the second level's
  std::uint32_t extra[2];  // the zero point, or the scales' codes, a byte each

  __device__ __forceinline__ float scale_of(std::uint32_t map, float offset, int unit, int h) const {
    if constexpr (Format::kNested) {  // two roundings, as elsewhere
      const std::uint32_t code = unit == 0 ? extra[h] & 0xFFu : extra[h] >> 8;
      const float part = __uint_as_float(device::load_shared(map + 4 * code));
      return __fadd_rn(__fmul_rn(part, __uint_as_float(scale[h][0])), offset);
    } else {
      return __uint_as_float(Format::kNarrow ? scale[h][unit] << 16 : scale[h][unit]);
    }
  }
  /// What the decoder's values are above the weights.
  __device__ __forceinline__ float bias_of(int h) const {
    return Format::kHasZeros ? kInt4Bias + static_cast<float>(extra[h]) : kInt4Bias + 8;
  }
};

/// Walks the units of a warp's part, tile after tile, and reads them.
template <class Format>
struct UnitReader {
  using Layout = typename Format::Layout;
  static constexpr int kScaleBytes = Format::kNarrow ? 2 : 4;
  static constexpr int kRunBytes = 4 * Layout::kWords;
  const MmaParams& p;
  int q, g, begin, end, tile, step, unit;
  int first_row;                 // of the warp's rows in a group of tiles
  int linear;                    // groups of tiles below this one are whole, and scales go on by rows
  const std::uint8_t* codes[2];  // the lane's first run of the row
  const char* scale[2];          // of the row
  const std::uint8_t* extra[2];
  int block[2];  // nested: the row's first in the whole matrix

  __device__ __forceinline__ UnitReader(const MmaParams& params, int lane, const WarpPlace& place, int first,
                                        int stride)
      : p(params), q(lane % 4), g(lane / 4), step(stride), first_row(place.tile * kTileRows) {
    begin = first_unit(place.part, p.units);
    end = first_unit(place.part + 1, p.units);
    linear = p.scale.row_shift == 0 ? p.rows / (p.cluster * kTileRows) : 0;
    tile = begin < end ? first : p.tiles;
    enter();
  }
  __device__ __forceinline__ void enter() {
    unit = begin;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = min(tile * p.cluster * kTileRows + first_row + g + 8 * h, p.rows - 1);
      codes[h] = p.codes + row * p.row_bytes + q * kRunBytes;
      const std::int64_t at = (row >> p.scale.row_shift) * p.scale.across;
      scale[h] = static_cast<const char*>(p.scale.scales) + at * kScaleBytes;
      if constexpr (Format::kHasZeros) extra[h] = p.scale.zeros + at;
      if constexpr (Format::kNested) {
        block[h] = static_cast<int>(p.scale.first_block + row * p.scale.row_blocks);
        extra[h] = p.scale.scale_codes + at;
      }
    }
  }
  __device__ __forceinline__ void enter_next() {
    tile += step;
    if (tile >= linear) return enter();
    unit = begin;
    const int rows = step * p.cluster * kTileRows;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      codes[h] += p.tile_step;
      if constexpr (!Format::kNested) scale[h] += p.scale.tile_step * kScaleBytes;
      if constexpr (Format::kNested || Format::kHasZeros) extra[h] += p.scale.tile_step;
      if constexpr (Format::kNested) block[h] += rows * static_cast<int>(p.scale.row_blocks);
    }
  }
  /// The next units, if there are some.
  __device__ __forceinline__ void read(UnitRegisters<Format>& to) {
    if (tile >= p.tiles) return;
    constexpr int kTogether = Format::kTogether;
    const int first = unit * kTogether, group = first >> p.scale.unit_shift;
    // Beyond the last column x is 0: any codes of the row will do.
    const bool outside = Layout::kBits == 8 && first * Layout::kColumns + Layout::column(q, 0) >= p.columns;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const std::uint8_t* from = codes[h] + (first * Layout::kBytes - (outside ? q * kRunBytes : 0));
#pragma unroll
      for (int u = 0; u < kTogether; ++u) read_codes(from + u * Layout::kBytes, to.codes[u][h]);
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) read_scale(to, group, h);
    if (++unit == end) enter_next();
  }
  __device__ __forceinline__ void read_scale(UnitRegisters<Format>& to, int group, int h) const {
    const char* from = scale[h] + group * kScaleBytes;
    if constexpr (Format::kNested) {
      const auto whole = static_cast<unsigned>(block[h] + group) / static_cast<unsigned>(kNestedBlock);
      to.scale[h][0] = __float_as_uint(__ldg(p.scale.nested + whole));
      if constexpr (Format::kTogether == 2) {  // of one nested block: both numbers are even
        to.extra[h] = __ldg(reinterpret_cast<const std::uint16_t*>(extra[h] + group));
      } else {
        to.extra[h] = __ldg(extra[h] + group);
      }
    } else if constexpr (Format::kTogether == 2) {
      const uint2 both = __ldg(reinterpret_cast<const uint2*>(from));
      to.scale[h][0] = both.x;
      to.scale[h][1] = both.y;
    } else if constexpr (Format::kNarrow) {
      to.scale[h][0] = __ldg(reinterpret_cast<const std::uint16_t*>(from));
    } else {
      to.scale[h][0] = __ldg(reinterpret_cast<const std::uint32_t*>(from));
    }
    if constexpr (Format::kHasZeros) to.extra[h] = __ldg(extra[h] + group);
  }
};

/// A block's shared memory and place.
template <class Format, int kNT>
struct MmaBlock {
  using Layout = typename Format::Layout;
  const MmaParams& p;
  const MmaShared& at;
  char* memory;
  int rank;        // in the cluster
  int begin, end;  // units of this block
  int x_bytes;     // of a row
  float offset;

  __device__ __forceinline__ MmaBlock(const MmaParams& params, const MmaShared& places, char* shared, int r)
      : p(params), at(places), memory(shared), rank(r), offset(0) {
    const int parts = kParts / p.cluster;
    begin = first_unit(rank * parts, p.units) * Format::kTogether;
    end = first_unit((rank + 1) * parts, p.units) * Format::kTogether;
    x_bytes = x_row_bytes((end - begin) * Layout::kColumns);
  }

  __device__ __forceinline__ std::uint32_t address() const {
    return static_cast<std::uint32_t>(__cvta_generic_to_shared(memory));
  }
  __device__ __forceinline__ float* sums() const { return reinterpret_cast<float*>(memory + at.sums); }
  __device__ __forceinline__ float* map() const { return reinterpret_cast<float*>(memory + at.map); }
  __device__ __forceinline__ const float* partials(unsigned buffer) const {
    return reinterpret_cast<float*>(memory + at.partials) + buffer * (kParts * 8 * kNT * kSumPitch);
  }

  // x of this block's columns, zeros beyond K; sums of a unit for codes with a bias, in an order that is the
  // same for any M.
  __device__ void stage_x() const {
    constexpr int kEach = Layout::kColumns / 8;  // eights of a unit
    const int of_row = (end - begin) * kEach, count = p.m * of_row;
    for (int base = 0; base < count; base += kMmaThreads) {
      const int i = base + static_cast<int>(threadIdx.x);
      const int row = i / of_row, unit = i % of_row / kEach, eight = i % kEach;
      const int column = (begin + unit) * Layout::kColumns + 8 * eight;
      uint4 raw{0, 0, 0, 0};
      if (i < count && column < p.columns)
        raw = *reinterpret_cast<const uint4*>(p.x + row * p.x_stride + column);
      if (i < count)
        *reinterpret_cast<uint4*>(memory + at.x + row * x_bytes + unit * (2 * Layout::kColumns) +
                                  16 * Layout::place(eight)) = device::in_order<Format::kOrder>(raw);
      if constexpr (Format::kBiased) {
        float sum = (low(raw.x) + high(raw.x)) + (low(raw.y) + high(raw.y));
        sum += (low(raw.z) + high(raw.z)) + (low(raw.w) + high(raw.w));
#pragma unroll
        for (int step = kEach / 2; step > 0; step /= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, step);
        if (i < count && eight == 0) sums()[unit * (8 * kNT) + row] = sum;
      }
    }
  }
  static __device__ __forceinline__ float low(std::uint32_t pair) { return __uint_as_float(pair << 16); }
  static __device__ __forceinline__ float high(std::uint32_t pair) {
    return __uint_as_float(pair & 0xFFFF0000u);
  }

  __device__ void fill_tables() {
    if constexpr (Format::kTable) device::fill_pair_table<kMmaThreads>(address(), p.values);
    if constexpr (Format::kNested) {
      offset = __ldg(p.scale.offset);
      if (threadIdx.x < 256) map()[threadIdx.x] = __ldg(p.scale.map + threadIdx.x);
    }
  }

  __device__ void wait() const {
    if (p.cluster == 1) {
      __syncthreads();
    } else {
      cooperative_groups::this_cluster().sync();
    }
  }

  // Adds up the parts of this block's tile. `turn` spreads the work over the warps.
  __device__ void write(int tile, unsigned turn) const {
    const float* partial = partials(turn % kSumBuffers<kNT>);
    const int first = (tile * p.cluster + rank) * kTileRows;
    const unsigned thread = (threadIdx.x - 32 * turn) % kMmaThreads;
    for (unsigned i = thread; i < kTileRows * static_cast<unsigned>(p.m); i += kMmaThreads) {
      const int row = static_cast<int>(i % kTileRows), column = static_cast<int>(i / kTileRows);
      if (first + row >= p.rows) continue;
      const float sum = add_parts(partial + column * kSumPitch + row, 8 * kNT * kSumPitch);
      p.y[column * p.y_stride + first + row] = device::round_to<bf16>(sum);
    }
  }
};

/// What a warp has of one tile.
template <class Format, int kNT>
struct MmaWarp {
  using Layout = typename Format::Layout;
  using Block = MmaBlock<Format, kNT>;
  const Block& block;
  int q, g;                                     // q: of four lanes; g: row of w, of x
  std::uint32_t x_row[kNT], map, sums, column;  // addresses in shared memory
  float total[kNT][4];
  std::uint32_t nan[2];

  __device__ __forceinline__ MmaWarp(const Block& b, int lane) : block(b), q(lane % 4), g(lane / 4) {
    const std::uint32_t memory = b.address();
    column = Format::kTable ? device::pair_table(memory) + 4 * static_cast<std::uint32_t>(lane) : 0;
    map = memory + static_cast<std::uint32_t>(b.at.map);
    sums = memory + static_cast<std::uint32_t>(b.at.sums + 8 * q);
#pragma unroll
    for (int n = 0; n < kNT; ++n)  // rows beyond M repeat the last: what they give is not written
      x_row[n] = memory + static_cast<std::uint32_t>(b.at.x + min(8 * n + g, b.p.m - 1) * b.x_bytes + 16 * q);
    clear();
  }

  __device__ __forceinline__ void clear() {
    nan[0] = nan[1] = 0;
#pragma unroll
    for (int n = 0; n < kNT; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) total[n][e] = 0;
    }
  }

  static __device__ __forceinline__ uint4 load_eight(std::uint32_t address) {
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(address));
    return v;
  }
  static __device__ __forceinline__ float2 load_two(std::uint32_t address) {
    float2 v;
    asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(address));
    return v;
  }

  // `unit` counts from the block's first.
  __device__ __forceinline__ void multiply(const UnitRegisters<Format>& in, int unit) {
#pragma unroll
    for (int u = 0; u < Format::kTogether; ++u) multiply(in, u, unit + u);
  }
  __device__ __forceinline__ void multiply(const UnitRegisters<Format>& in, int u, int unit) {
    const auto& codes = in.codes[u];
    const auto x = static_cast<std::uint32_t>(unit * (2 * Layout::kColumns));
    float sum[kNT][4] = {};
#pragma unroll
    for (int e = 0; e < Layout::kEights; ++e) {
      const Eight low = Format::decode(codes[0], e, column), high = Format::decode(codes[1], e, column);
#pragma unroll
      for (int n = 0; n < kNT; ++n) {
        const uint4 b = load_eight(x_row[n] + x + 16 * Layout::place_of(0, e));
        device::mma_16816(sum[n], low, high, 0, b.x, b.y);
        device::mma_16816(sum[n], low, high, 2, b.z, b.w);
      }
    }
    if constexpr (Format::kHasNan) {
#pragma unroll
      for (int w = 0; w < Layout::kWords; ++w) {
        nan[0] |= nan_e4m3(codes[0][w]);
        nan[1] |= nan_e4m3(codes[1][w]);
      }
    }
    add(in, u, unit, sum);
  }

  // total += scale (sum - bias times the unit's sum of x)
  __device__ __forceinline__ void add(const UnitRegisters<Format>& in, int u, int unit,
                                      const float (&sum)[kNT][4]) {
    float scale[2], bias[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      scale[h] = in.scale_of(map, block.offset, u, h);
      bias[h] = in.bias_of(h);
    }
#pragma unroll
    for (int n = 0; n < kNT; ++n) {
      float2 of_x{};
      if constexpr (Format::kBiased)
        of_x = load_two(sums + static_cast<std::uint32_t>(unit * (32 * kNT) + 32 * n));
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float x = e % 2 == 0 ? of_x.x : of_x.y;
        const float value = Format::kBiased ? fmaf(-bias[e / 2], x, sum[n][e]) : sum[n][e];
        total[n][e] = fmaf(scale[e / 2], value, total[n][e]);
      }
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
        if (any == 0) continue;
#pragma unroll
        for (int n = 0; n < kNT; ++n) total[n][2 * h] = total[n][2 * h + 1] = __uint_as_float(0x7FC00000u);
      }
    }
  }

  // Into the memory of the block that adds up this tile: `part` is an address there.
  __device__ __forceinline__ void send(std::uint32_t part) const {
#pragma unroll
    for (int n = 0; n < kNT; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int column = 8 * n + 2 * q + e % 2;
        const auto at = static_cast<std::uint32_t>((column * kSumPitch + g + e / 2 * 8) * 4);
        if (column >= block.p.m) continue;
        if (block.p.cluster == 1) {
          asm volatile("st.shared.f32 [%0], %1;" ::"r"(part + at), "f"(total[n][e]) : "memory");
        } else {
          asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(part + at), "f"(total[n][e]) : "memory");
        }
      }
    }
  }
};

/// The address in block `rank` of the cluster of what lies at `address` in this one.
__device__ __forceinline__ std::uint32_t address_in(std::uint32_t address, int rank) {
  std::uint32_t there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
  return there;
}

template <class Format, int kNT>
__global__ void __launch_bounds__(kMmaThreads, 1)
    quant_mma_kernel(const __grid_constant__ MmaParams p, const __grid_constant__ MmaShared at) {
  extern __shared__ __align__(128) char memory[];
  constexpr int kAhead = kNT == 1 ? Format::kAhead : (kNT == 2 ? Format::kAhead * 3 / 4 : Format::kAhead / 2);
  const auto cluster = cooperative_groups::this_cluster();
  const int rank = p.cluster == 1 ? 0 : static_cast<int>(cluster.block_rank());
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int step = static_cast<int>(gridDim.x) / p.cluster;
  const WarpPlace place = warp_place(warp, rank, p.cluster);
  int tile = static_cast<int>(blockIdx.x) / p.cluster;

  UnitReader<Format> reader(p, lane, place, tile, step);
  UnitRegisters<Format> slots[kAhead];  // a ring that runs on from tile to tile
#pragma unroll
  for (int s = 0; s < kAhead; ++s) reader.read(slots[s]);
  MmaBlock<Format, kNT> block(p, at, memory, rank);
  block.fill_tables();
  block.stage_x();
  block.wait();

  MmaWarp<Format, kNT> sums(block, lane);
  const int begin = reader.begin * Format::kTogether - block.begin;
  const int end = reader.end * Format::kTogether - block.begin;
  constexpr int kBuffer = kParts * 8 * kNT * kSumPitch * 4;  // bytes
  auto part = static_cast<std::uint32_t>(__cvta_generic_to_shared(memory) + at.partials) +
              static_cast<std::uint32_t>(place.part) * (kBuffer / kParts);
  if (p.cluster > 1) part = address_in(part, place.tile);
  int unit = begin, next = 0;
  unsigned turn = 0;
  while (tile < p.tiles) {
    bool done = begin == end;
#pragma unroll
    for (int s = 0; s < kAhead; ++s) {
      if (done || s < next) continue;
      sums.multiply(slots[s], unit);
      reader.read(slots[s]);
      unit += Format::kTogether;
      if (unit < end) continue;
      done = true;
      next = s + 1;
    }
    if (next == kAhead || !done) next = 0;
    if (!done) continue;
    sums.poison();
    sums.send(part + turn % kSumBuffers<kNT> * static_cast<std::uint32_t>(kBuffer));
    block.wait();
    block.write(tile, turn);
    if constexpr (kSumBuffers<kNT> == 1) block.wait();
    sums.clear();
    unit = begin;
    tile += step;
    ++turn;
  }
}

template <class Format>
void launch_quant_mma(cudaStream_t stream, const MmaParams& params) {
  visit_mma_width(params.m, [&](auto width) {
    constexpr int kNT = decltype(width)::value;
    const auto kernel = quant_mma_kernel<Format, kNT>;
    const MmaShared at = MmaShared::of<Format, kNT>(params.m, params.units, params.cluster);
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, at.bytes));
    const int clusters = std::max(1, std::min(params.tiles, ridge::cuda::multiprocessors() / params.cluster));
    MmaParams p = params;
    p.tile_step = std::int64_t{clusters} * params.cluster * kTileRows * params.row_bytes;
    p.scale.tile_step = std::int64_t{clusters} * params.cluster * kTileRows * params.scale.across;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(clusters * params.cluster));
    config.blockDim = dim3(kMmaThreads);
    config.dynamicSmemBytes = static_cast<std::size_t>(at.bytes);
    config.stream = stream;
    cudaLaunchAttribute attribute{};
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim.x = static_cast<unsigned>(params.cluster);
    attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
    config.attrs = &attribute;
    config.numAttrs = params.cluster > 1 ? 1 : 0;
    check_cuda(cudaLaunchKernelEx(&config, kernel, p, at));
  });
}

}  // namespace ridge::kernels::cuda
