// What comes to the products of quant_wgmma.cuh: places in shared memory, x in the order that the codes want,
// codes, and scales.
//
// Shapes as in quant_wgmma_params.cuh.
#pragma once

#include <algorithm>

#include "kernels/device/cluster.cuh"
#include "kernels/device/mbarrier.cuh"
#include "kernels/device/vec.cuh"
#include "kernels/device/wgmma.cuh"
#include "kernels/quant_wgmma_codes.cuh"
#include "kernels/quant_wgmma_params.cuh"

namespace ridge::kernels::cuda {

inline constexpr unsigned kWorkersBarrier = 1;
template <int kX>
__device__ __forceinline__ void meet_workers() {
  asm volatile("bar.sync %0, %1;" ::"n"(kWorkersBarrier), "n"(kWorkers<kX>) : "memory");
}

__device__ __forceinline__ unsigned cluster_number() {
  unsigned number;
  asm("mov.u32 %0, %%clusterid.x;" : "=r"(number));
  return number;
}

/// A place in a ring of slots, and the parity of its turn.
struct RingPlace {
  int slot = 0;
  std::uint32_t parity = 0;
  __device__ __forceinline__ void advance(int slots) {
    if (++slot < slots) return;
    slot = 0;
    parity ^= 1;
  }
};

/// What all threads of a block know; kX: rows of x that the kernel is compiled for.
template <class Format, int kX>
struct WgmmaBlock {
  static constexpr int kColumns = kSlabBytes * 8 / Format::kBits;  // of a slab
  static constexpr int kXSlot = kX * kColumns * 2;                 // bytes
  static constexpr int kSteps = kColumns / 16;
  static constexpr WgmmaShared kAt = WgmmaShared::of(kX, kXSlot, Format::kTable);
  static constexpr int kAhead = kAt.code_slots - 1;  // boxes of codes under way
  static_assert(kAhead >= 1 && kAt.bytes <= kWgmmaShared);
  const WgmmaParams& p;
  std::uint32_t memory;  // its address
  int rank;              // in the cluster
  int begin, end;        // slabs
  int first_tile, step;

  __device__ __forceinline__ explicit WgmmaBlock(const WgmmaParams& params, std::uint32_t shared)
      : p(params), memory(shared) {
    rank = p.cluster == 1 ? 0 : static_cast<int>(device::cluster_rank());
    begin = p.first_slab[rank];
    end = p.first_slab[rank + 1];
    first_tile = p.cluster == 1 ? static_cast<int>(blockIdx.x) : static_cast<int>(cluster_number());
    step = p.clusters;
  }
  __device__ __forceinline__ int work() const {  // slabs of all tiles
    int slabs = 0;
#pragma unroll 1
    for (int tile = first_tile; tile < p.tiles; tile += step) slabs += end - begin;
    return slabs;
  }
  /// Whether a warp has rows.
  __device__ __forceinline__ bool has_rows(int warp) const { return warp * kWarpRows<kX> < p.tile_rows; }
  /// Whether a warp multiplies: products are of four, of which one has rows. Of many rows of x all do, for
  /// want of registers.
  __device__ __forceinline__ bool is_busy(int warp) const { return kX > 32 || has_rows(warp & ~3); }
  __device__ __forceinline__ int busy_warps() const {
    constexpr int kFour = 4 * kWarpRows<kX>;
    return kX > 32 ? kWorkers<kX> / 32 : (p.tile_rows + kFour - 1) / kFour * 4;
  }
  /// A warp's of a tile; any, where it has none.
  __device__ __forceinline__ int first_row(int tile, int warp) const {
    return has_rows(warp) ? tile * p.tile_rows + warp * kWarpRows<kX> : 0;
  }
  // Barriers: a warp's ring of codes has 16 places.
  __device__ __forceinline__ std::uint32_t has_codes(int warp) const { return memory + 128 + 128 * warp; }
  __device__ __forceinline__ std::uint32_t has_x(int slot) const { return memory + 8 * slot; }
  __device__ __forceinline__ std::uint32_t is_free(int slot) const { return memory + 32 + 8 * slot; }
  __device__ __forceinline__ std::uint32_t has_sums() const { return memory + 64; }
  __device__ __forceinline__ std::uint32_t took_sums() const { return memory + 72; }
  __device__ __forceinline__ std::uint32_t x_slot(int slot) const { return memory + kAt.x + slot * kXSlot; }
  __device__ __forceinline__ std::uint32_t code_slot(int slot) const {
    return memory + kAt.codes + slot * (kWgmmaRows * kBoxBytes);
  }
  /// Where the 16 bytes number `chunk` of a row lie in a slot: 8 rows' are in 8 different places.
  static __device__ __forceinline__ std::uint32_t chunk_place(int row, int chunk) {
    return static_cast<std::uint32_t>(row * kBoxBytes + 16 * (chunk ^ (row & 7)));
  }

  __device__ __forceinline__ void prepare() const {
    if (threadIdx.x == kWorkers<kX>) {
      for (int i = 0; i < kAt.x_slots; ++i) {
        device::begin_barrier(has_x(i), kFeeders / 32);
        device::begin_barrier(is_free(i), busy_warps());
      }
      device::begin_barrier(has_sums(), p.cluster);
      device::begin_barrier(took_sums(), p.cluster);
      device::fence_barriers();
    }
    fill_tables();
    __syncthreads();
    if (p.cluster > 1) device::cluster_arrive_relaxed();
  }
  __device__ __forceinline__ void fill_tables() const {
    if constexpr (Format::kTable) {
      device::fill_pair_table<kWorkers<kX> + kFeeders>(memory, p.values);
      if (Format::kNested && threadIdx.x < 256)
        asm volatile("st.shared.f32 [%0], %1;" ::"r"(memory + kAt.map + 4 * threadIdx.x),
                     "f"(__ldg(p.scale.map + threadIdx.x))
                     : "memory");
    }
  }
};

/// A thread that brings codes and x.
template <class Format, int kX>
struct WgmmaFeeder {
  using Block = WgmmaBlock<Format, kX>;
  static constexpr int kPieces = kX * Block::kColumns / 8 / kFeeders;  // of 8 columns of x, a slab
  static constexpr int kLook = (kX > 32 ? 16 : 8) / kPieces;           // slabs of x in registers
  const Block& block;
  const WgmmaParams& p;
  int thread, x_row, x_column, x_slab;
  uint4 pieces[kLook][kPieces];
  const bf16* x;

  __device__ __forceinline__ WgmmaFeeder(const Block& b, int t)
      : block(b), p(b.p), thread(t), x_slab(b.begin) {
    const int down = Format::kBits == 4 ? t / 4 : (t >> 1 & 7) | t >> 5 << 3;
    const int across = Format::kBits == 4 ? t % 4 : (t >> 4 & 1) * 2 + (t & 1);
    x_row = down % kX;
    x_column = 8 * across + down / kX * 32;
    x = p.x + x_row * p.x_stride + x_column;
#pragma unroll
    for (int k = 0; k < kLook; ++k) {
#pragma unroll
      for (int i = 0; i < kPieces; ++i) pieces[k][i] = read_x(i);
      next_slab();
    }
  }

  // Rows and columns from a thread's first piece of x to number i.
  static constexpr int kRowsAtOnce = kX < kFeeders / 4 ? kX : kFeeders / 4;
  static constexpr int down_of(int i) { return i % (kX / kRowsAtOnce) * kRowsAtOnce; }
  static constexpr int across_of(int i) { return i / (kX / kRowsAtOnce) * (kFeeders / 4 / kRowsAtOnce) * 32; }

  // Zeros beyond M and K.
  __device__ __forceinline__ uint4 read_x(int i) const {
    const int down = down_of(i), column = x_slab * Block::kColumns + across_of(i);
    if (x_row + down >= p.m || column + x_column >= p.columns) return make_uint4(0, 0, 0, 0);
    return *reinterpret_cast<const uint4*>(x + down * p.x_stride + column);
  }
  __device__ __forceinline__ void next_slab() {
    if (++x_slab == block.end) x_slab = block.begin;
  }

  static __device__ __forceinline__ std::uint32_t pair_of(const uint4& raw, int a, int b) {
    const std::uint32_t from[4] = {raw.x, raw.y, raw.z, raw.w};
    return __byte_perm(from[a / 2], from[b / 2],
                       (a % 2 == 0 ? 0x10u : 0x32u) | (b % 2 == 0 ? 0x5400u : 0x7600u));
  }
  // Pairs of columns to the places where the lanes that have their weights expect them.
  __device__ __forceinline__ void store_x(const uint4& from, int i, std::uint32_t slot) const {
    constexpr int kHalf = kX * 16;  // bytes of 8 columns
    const int down = x_row + down_of(i), column = x_column + across_of(i);
    if constexpr (Format::kBits == 4) {
      const auto to =
          slot + static_cast<std::uint32_t>(column / 32 * (4 * kHalf) + down * 16 + 4 * (thread % 4));
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int a = column_of(Format::kOrder, 2 * j), b = column_of(Format::kOrder, 2 * j + 1);
        asm volatile("st.shared.u32 [%0], %1;" ::"r"(to + j * kHalf), "r"(pair_of(from, a, b)) : "memory");
      }
    } else {
      const auto to =
          slot + static_cast<std::uint32_t>(column / 16 * (2 * kHalf) + down * 16 + 8 * (thread & 1));
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int a = column_of(Format::kOrder, 2 * j), b = column_of(Format::kOrder, 2 * j + 1);
        asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(to + j * kHalf), "r"(pair_of(from, a, b)),
                     "r"(pair_of(from, 4 + a, 4 + b))
                     : "memory");
      }
    }
  }

  __device__ __forceinline__ void run() {
    const int work = block.work();
    RingPlace place{0, 1};
    for (int done = 0; done < work; done += kLook) {
#pragma unroll
      for (int k = 0; k < kLook; ++k) {
        if (done + k >= work) break;
        device::await(block.is_free(place.slot), place.parity);
#pragma unroll
        for (int i = 0; i < kPieces; ++i) store_x(pieces[k][i], i, block.x_slot(place.slot));
        device::fence_for_wgmma();
        __syncwarp();
        if (threadIdx.x % 32 == 0) device::arrive(block.has_x(place.slot));
#pragma unroll
        for (int i = 0; i < kPieces; ++i) pieces[k][i] = read_x(i);  // the fence would wait for these
        next_slab();
        place.advance(Block::kAt.x_slots);
      }
    }
  }
};

/// A warp's codes of its rows, through a ring of its own.
template <class Format, int kX>
struct WgmmaCodes {
  using Block = WgmmaBlock<Format, kX>;
  static constexpr int kSlots = Block::kAt.code_slots, kBytes = kWarpRows<kX> * kBoxBytes;
  const Block& block;
  int warp, lane;
  bool has_rows;
  int tile, slab;  // to be brought next
  RingPlace place;
  std::uint32_t at;  // the lane's address in the first slot

  __device__ __forceinline__ WgmmaCodes(const Block& b, int w, int l)
      : block(b), warp(w), lane(l), has_rows(b.has_rows(w)), tile(b.first_tile), slab(b.begin) {
    at = block.code_slot(0) + static_cast<std::uint32_t>(warp * kBytes) +
         Block::chunk_place(lane % 16, lane / 16);
    if (lane == 0) {
#pragma unroll 1
      for (int i = 0; i < kSlots; ++i) device::begin_barrier(barrier(i), 1);
      device::fence_barriers();
    }
    __syncwarp();
#pragma unroll 1
    for (int i = 0; i < Block::kAhead; ++i) bring(i);
  }
  __device__ __forceinline__ std::uint32_t barrier(int slot) const {
    return block.has_codes(warp) + static_cast<std::uint32_t>(8 * slot);
  }
  /// The next box, if there is one; zeros beyond N and K.
  __device__ __forceinline__ void bring(int slot) {
    if (!has_rows || tile >= block.p.tiles) return;
    if (lane == 0) {
      device::arrive_expecting(barrier(slot), kBytes);
      device::copy_box(block.code_slot(slot) + static_cast<std::uint32_t>(warp * kBytes), &block.p.map,
                       slab * kSlabBytes, block.first_row(tile, warp), barrier(slot));
    }
    slab += 2;
    if (slab < block.end) return;
    slab = block.begin;
    tile += block.step;
  }
  /// The words of a box's slab number `half`; 0: of the next box.
  __device__ __forceinline__ void take(device::SlabWords (&words)[kStrips<kX>], int half) {
    if (half == 0) {
      if (has_rows) device::await(barrier(place.slot), place.parity);
      __syncwarp();  // all lanes have what the slot before held
      bring(place.slot == 0 ? kSlots - 1 : place.slot - 1);
    }
    const std::uint32_t from = (at + static_cast<std::uint32_t>(place.slot * (kWgmmaRows * kBoxBytes))) ^
                               static_cast<std::uint32_t>(kSlabBytes * half);
#pragma unroll
    for (int t = 0; t < kStrips<kX>; ++t) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        std::uint32_t pieces[4];
        device::load_pieces(pieces, (from ^ static_cast<std::uint32_t>(32 * i)) + t * (16 * kBoxBytes));
#pragma unroll
        for (int j = 0; j < 4; ++j) words[t][2 * i + j / 2][j % 2] = pieces[j];
      }
    }
    if (half == 1) place.advance(kSlots);
  }
};

/// Scales and zero points: the four lanes of a row read those of four units at once, each one's.
template <class Format, int kX>
struct WgmmaScaleReader {
  const WgmmaBlock<Format, kX>& block;
  const WgmmaScales& s;
  static constexpr int kUnits = 2 * Format::kBatches / std::max(1, Format::kGroup);  // of a box
  static_assert(kUnits % 4 == 0 || kUnits == 2);
  int lane, row, unit, box, place;  // unit: to be read next; place: of the unit at hand, of four
  int at[kStrips<kX>][2];
  std::uint32_t next[kStrips<kX>][2], next_extra[kStrips<kX>][2];  // as stored
  std::uint32_t now[kStrips<kX>][2], extra[kStrips<kX>][2];

  __device__ __forceinline__ WgmmaScaleReader(const WgmmaBlock<Format, kX>& b, int l)
      : block(b), s(b.p.scale), lane(l) {}

  __device__ __forceinline__ int row_of(int t, int h) const {
    return min(row + 16 * t + 8 * h, block.p.rows - 1);
  }
  /// Begins with unit `first` of the rows from `row` on.
  __device__ __forceinline__ void enter(int first_row, int first) {
    row = first_row + lane / 4;
    unit = first;
    box = 2;
    place = 3;
#pragma unroll
    for (int t = 0; t < kStrips<kX>; ++t) {
#pragma unroll
      for (int h = 0; h < 2; ++h) at[t][h] = (row_of(t, h) >> s.row_shift) * static_cast<int>(s.across);
    }
    read();
  }
  __device__ __forceinline__ void read() {
    const int group = min(unit + lane % 4, s.units - 1) >> s.unit_shift;
    unit += 4;
#pragma unroll
    for (int t = 0; t < kStrips<kX>; ++t) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int i = at[t][h] + group;
        if constexpr (Format::kNested) {
          next_extra[t][h] = __ldg(s.scale_codes + i);
          const auto whole = static_cast<unsigned>(s.first_block + row_of(t, h) * s.row_blocks + group);
          next[t][h] = __float_as_uint(__ldg(s.nested + whole / 256u));
        } else if constexpr (Format::kNarrow) {
          next[t][h] = __ldg(static_cast<const std::uint16_t*>(s.scales) + i);
        } else {
          next[t][h] = __ldg(static_cast<const std::uint32_t*>(s.scales) + i);
        }
        if constexpr (Format::kHasZeros) next_extra[t][h] = __ldg(s.zeros + i);
      }
    }
  }
  /// Those of a box's unit come to hand; of all units, one after the other.
  __device__ __forceinline__ void advance(int number) {
    if constexpr (kStrips<kX> == 2) {  // the number is not known when it is compiled
      place = (place + 1) % 4;
    } else {
      if (kUnits == 2 && number == 0) box ^= 2;
      place = kUnits == 2 ? box + number : number % 4;
      if (number % 2 != 0) return;
    }
    if (place != 0) return;
#pragma unroll
    for (int t = 0; t < kStrips<kX>; ++t) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        now[t][h] = next[t][h];
        if constexpr (Format::kNarrow) now[t][h] <<= 16;
        if constexpr (Format::kHasZeros) extra[t][h] = (0x4300u + next_extra[t][h]) * 0x10001u;
        if constexpr (Format::kNested) {  // two roundings, as elsewhere
          const float part = __uint_as_float(device::load_shared(
              block.memory + static_cast<std::uint32_t>(block.kAt.map) + 4 * next_extra[t][h]));
          now[t][h] =
              __float_as_uint(__fadd_rn(__fmul_rn(part, __uint_as_float(now[t][h])), __ldg(s.offset)));
        }
      }
    }
    read();
  }
  __device__ __forceinline__ void give(std::uint32_t (&bias)[2], float (&scale)[2], int t) const {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if constexpr (Format::kHasZeros) bias[h] = __shfl_sync(0xFFFFFFFFu, extra[t][h], place, 4);
      scale[h] = __uint_as_float(__shfl_sync(0xFFFFFFFFu, now[t][h], place, 4));
    }
  }
};

}  // namespace ridge::kernels::cuda
