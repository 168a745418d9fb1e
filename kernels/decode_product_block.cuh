// A block of decode_product.cuh's kernel: its shared memory, how its warps read pieces of codes, and x.
#pragma once

#include "kernels/decode_product_params.cuh"
#include "kernels/device/async_copy.cuh"
#include "kernels/device/barrier.cuh"
#include "kernels/device/block.cuh"
#include "kernels/device/mma.cuh"
#include "kernels/device/pack.cuh"

namespace ridge::kernels::cuda {

/// In a register: the compiler would compute it again and again.
__device__ __forceinline__ std::uint32_t kept(std::uint32_t value) {
  asm volatile("" : "+r"(value));
  return value;
}

/// A block's shared memory.
template <class Format>
struct DecodeBlock {
  using Layout = typename Format::Layout;
  const DecodeParams& p;
  const DecodeShared& at;  // p.at
  char* memory;
  std::uint32_t base;
  int m, stages;  // p.m and at.stages, or constants

  __device__ __forceinline__ DecodeBlock(const DecodeParams& params, char* shared, int rows_of_x, int of_ring)
      : p(params),
        at(params.at),
        memory(shared),
        base(Format::kTable ? device::kPairLines : device::shared_address(shared)),
        m(rows_of_x),
        stages(of_ring) {}

  __device__ __forceinline__ std::uint32_t address(int offset) const {
    return base + static_cast<std::uint32_t>(offset);
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
  /// Behind the first copies, which take longer; before a barrier of the block.
  __device__ __forceinline__ void begin() const {
    if (threadIdx.x == 0) {  // one thread: addresses that are the same in all need no loop
#pragma unroll
      for (unsigned slot = 0; slot < kSlots; ++slot) {
        device::begin_barrier(full(slot), kDecodeWarps);
        device::begin_barrier(empty(slot), 1);
      }
    }
    if constexpr (Format::kTable)
      device::fill_pair_lines<kDecodeThreads>(device::shared_address(memory), p.values);
  }
  /// A thread's part of the halves' maps of scales: read early, put there when it has come.
  struct Map {
    float of[2];
  };
  __device__ __forceinline__ Map read_map() const {
    Map map{};
    if constexpr (Format::kNested) {
#pragma unroll
      for (int h = 0; h < 2; ++h) map.of[h] = __ldg(p.map[h] + threadIdx.x);
    }
    return map;
  }
  __device__ __forceinline__ void put(const Map& map) const {
    if constexpr (Format::kNested) {
#pragma unroll
      for (int h = 0; h < 2; ++h) this->template of<float>(at.map)[256 * h + threadIdx.x] = map.of[h];
    }
  }
};

/// Where a piece lies in shared memory: its rows of codes, and their scales.
struct Stage {
  std::uint32_t codes, scales;
};

/// A warp's ring: stages one after the other.
template <class Format>
struct Ring {
  using Of = Piece<Format>;
  std::uint32_t begin, end, codes;

  __device__ __forceinline__ Ring(const DecodeBlock<Format>& block, int warp) {
    const int bytes = block.stages * Of::kStageBytes;
    begin = codes = block.address(block.p.ring + warp * bytes);
    end = begin + static_cast<std::uint32_t>(bytes);
  }
  __device__ __forceinline__ Stage stage() const { return {codes, codes + kTileRows * kPieceBytes}; }
  __device__ __forceinline__ void next() {
    codes += Of::kStageBytes;
    if (codes == end) codes = begin;
  }
};

/// Beside a table: see stage_place, whose run is cut once at most.
template <class Format>
requires(Format::kTable) struct Ring<Format> {
  using Of = Piece<Format>;
  std::uint32_t begin, end, codes, cut = 0, behind = 0;
  std::uint32_t first_scales, scales;

  __device__ __forceinline__ Ring(const DecodeBlock<Format>& block, int warp) {
    const int each = block.stages, all = each * kDecodeWarps, first = warp * each;
    begin = codes = block.address(stage_place(first, all));
    end = block.address(stage_place(first + each - 1, all) + kStageLines);
    for (const int at : {kStagesInTable, first_in_second(all)}) {
      if (first >= at || at >= first + each) continue;
      cut = block.address(stage_place(at - 1, all) + kStageLines);
      behind = block.address(stage_place(at, all));
    }
    first_scales = scales = block.address(block.at.scales + first * Of::kAllScaleBytes);
  }
  __device__ __forceinline__ Stage stage() const { return {codes, scales}; }
  __device__ __forceinline__ void next() {
    codes += Of::kStageBytes;
    scales += Of::kAllScaleBytes;
    if (codes == cut) codes = behind;
    if (codes == end) codes = begin, scales = first_scales;
  }
};

/// Copies a warp's pieces, tile after tile, into its ring.
template <class Format>
struct PieceReader {
  using Of = Piece<Format>;
  static constexpr int kStep = kDecodeWarps * kPieceBytes;  // bytes of a row from piece to piece
  const DecodeParams& p;
  std::uint64_t policy;
  int tile, warp, lane;
  std::uint32_t place;           // in a stage, of this lane's first chunk
  std::uint32_t own_scales = 0;  // of a stage's scales, this lane's
  static constexpr int kScaleCopies = Of::kScaleBytes <= 16 ? 1 : Of::kScaleBytes / 16;
  int piece;                                  // of the row, the next
  int most_piece, most_scales[kScaleCopies];  // there are a lane's copies of pieces below
  int end, scales_end[kScaleCopies];          // of this tile's
  const std::uint8_t *codes_of, *from;  // chunk lane % 8 of row lane / 8, of the first and the next piece
  const std::uint8_t *scales_of = nullptr, *scales = nullptr, *zeros = nullptr;

  __device__ __forceinline__ PieceReader(const DecodeBlock<Format>& block, int of)
      : p(block.p),
        policy(device::read_once_policy()),
        tile(static_cast<int>(blockIdx.x)),
        warp(of),
        lane(static_cast<int>(threadIdx.x % 32)) {
    const int row = lane / 8;
    place = kept(static_cast<std::uint32_t>(row * Of::kLine +
                                            16 * chunk_place<Format::Layout::kWords>(row, lane % 8)));
    most_piece =
        static_cast<int>(static_cast<unsigned>(p.used_bytes - lane % 8 * 16 + kPieceBytes - 1) / kPieceBytes);
    codes_of =
        p.codes +
        std::uint64_t{static_cast<unsigned>(tile * p.rows + row)} * static_cast<std::uint64_t>(p.row_bytes) +
        static_cast<unsigned>(warp * kPieceBytes + lane % 8 * 16);
    if constexpr (Of::kScales > 0) {
#pragma unroll
      for (int i = 0; i < kScaleCopies; ++i) {
        const int bytes = p.across * Format::kScaleBytes - 16 * i;
        const auto pieces = static_cast<unsigned>(bytes + Of::kScaleBytes - 1) / Of::kScaleBytes;
        most_scales[i] = lane < Of::kScaleRows ? static_cast<int>(pieces) : 0;
      }
      scales_of = scales_at();
      own_scales = kept(static_cast<std::uint32_t>(lane * Of::kScaleBytes));
    }
    enter();
  }
  /// Queues the next piece, or nothing after the last, as a group of copies.
  __device__ __forceinline__ void read(const Stage& to) {
    copy(to);
    device::end_copies();
    from += kStep;
    if constexpr (Of::kScales > 0) scales += kDecodeWarps * Of::kScaleBytes;
    piece += kDecodeWarps;
    if (piece < p.pieces) return;
    tile += p.turn.tiles;
    codes_of += p.turn.codes;
    if constexpr (Of::kScales > 0) scales_of = Of::kTiles ? scales_at() : scales_of + p.turn.scales;
    enter();
  }

 private:
  // Of the lane's of two. Not values[which]: constants at an address of their own come late.
  template <class T>
  __device__ __forceinline__ T of_lane(const T (&of)[2]) const {
    const T first = of[0], second = of[1];
    return p.gated() && lane >= (Of::kTiles ? 1 : kTileRows / 2) ? second : first;
  }
  // Of the lane's row of a tile: lanes 0 and 1 have those of rows 0 and 8 where scales are of tiles.
  __device__ __forceinline__ std::int64_t first_scale() const {
    const int row = Of::kTiles ? 8 * lane : lane;
    int number = tile * p.rows + (row & (p.rows - 1));
    if constexpr (Of::kTiles) number += static_cast<int>(of_lane(p.first_row));
    const auto of_scales = static_cast<unsigned>(Of::kTiles ? number >> p.row_shift : number);
    return static_cast<std::int64_t>(std::uint64_t{of_scales} * static_cast<unsigned>(p.across));
  }
  __device__ __forceinline__ const std::uint8_t* scales_at() const {
    return of_lane(p.scales) + first_scale() * Format::kScaleBytes + warp * Of::kScaleBytes;
  }
  __device__ __forceinline__ void enter() {
    piece = warp;
    from = codes_of;
    end = tile < p.tiles ? most_piece : 0;
    if constexpr (Of::kScales > 0) {
      scales = scales_of;
#pragma unroll
      for (int i = 0; i < kScaleCopies; ++i) scales_end[i] = tile < p.tiles ? most_scales[i] : 0;
      if constexpr (Format::kHasZeros) zeros = of_lane(p.zeros) + first_scale();
    }
  }
  __device__ __forceinline__ void copy(const Stage& stage) const {
    if (piece < end) {
      const std::uint8_t* lower = from + p.second;
#pragma unroll
      for (int i = 0; i < kTileRows / 4; ++i) {
        const std::uint32_t to = Format::Layout::kWords == 1 && i % 2 == 1 ? place ^ 64u : place;
        device::copy_16(stage.codes + to + static_cast<std::uint32_t>(i * 4 * Of::kLine),
                        (i < 2 ? from : lower) + i % 2 * p.four, policy);
      }
    }
    if constexpr (Of::kScales > 0) copy_scales(stage.scales);
  }
  __device__ __forceinline__ void copy_scales(std::uint32_t to) const {
    constexpr int kEach = Of::kScaleBytes < 16 ? Of::kScaleBytes : 16;
#pragma unroll
    for (int i = 0; i < kScaleCopies; ++i) {
      if (piece < scales_end[i])
        device::copy_small<kEach>(to + own_scales + static_cast<std::uint32_t>(16 * i), scales + 16 * i);
    }
    if constexpr (Format::kHasZeros) {
      if (piece < scales_end[0])
        device::copy_small<Of::kZeroBytes>(
            to + static_cast<std::uint32_t>(kTileRows * Of::kScaleBytes + lane * Of::kZeroBytes),
            zeros + piece * Of::kScales / Of::kZeroBytes * Of::kZeroBytes);
    }
  }
};

/// A warp's columns of x into shared memory, which it alone reads: normalized where that is wanted, in the
/// decoders' order, with sums of its units; or by a power of two, as digits or in f16.
template <class Format>
struct XStage {
  using Layout = typename Format::Layout;
  using Pack = device::Pack<bf16>;
  static constexpr int kOfPiece = Piece<Format>::kUnits * Layout::kColumns / 8;
  static constexpr int kStep = 32 * kDecodeWarps;  // packs from one of a lane's to its next
  const DecodeBlock<Format>& block;
  int warp, lane;
  int first, count;  // a lane's packs: number first + i kStep of the row, i < count, unless they lie beyond
  int left;          // packs of the row from `first` on
  int place;         // of the lane's first pack in x's shared memory; a step is kStepBytes
  static constexpr int kStepBytes = kStep * (Format::kInteger ? 8 : 16);
  uint4 weight[kNormPacks];  // of the norm; where there is none, nothing reads it

  __device__ __forceinline__ explicit XStage(const DecodeBlock<Format>& b)
      : block(b),
        warp(static_cast<int>(threadIdx.x / 32 % kDecodeWarps)),
        lane(static_cast<int>(threadIdx.x % 32)) {
    constexpr int kOfUnit = Layout::kColumns / 8;
    static_assert(kStep % kOfUnit == 0);
    const int packs = static_cast<int>(static_cast<unsigned>(b.p.columns) / 8);
    first = (warp + kDecodeWarps * (lane / kOfPiece)) * kOfPiece + lane % kOfPiece;
    left = packs - first;
    count = static_cast<int>(static_cast<unsigned>(packs - warp * kOfPiece + kStep - 1) / kStep);
    place = b.at.x + (Format::kInteger
                          ? Layout::byte_place(first)
                          : first / kOfUnit * 2 * Layout::kColumns + 16 * Layout::place(first % kOfUnit));
    if (b.p.norm == nullptr) return;
    each<kNormPacks>(0, [&](int i) { weight[i] = load(b.p.norm, i); });
  }
  /// Calls meanwhile() once, when the first of x are on their way. After it all threads of the block meet.
  template <class F>
  __device__ void all(const F& meanwhile) const {
    const DecodeParams& p = block.p;
    for (int row = 0; row < block.m; ++row) {
      const bf16* from = p.x + row * p.x_stride;
      uint4 x[kMostPacks];  // not zeros where the warp has none: nothing reads those
      each<kMostPacks>(0, [&](int i) { x[i] = load(from, i); });
      if (row == 0) {
        meanwhile();
        if (p.norm == nullptr) __syncthreads();  // else they meet in normalize()
      }
      if (p.norm != nullptr) normalize(x, row);
      const float factor = Format::kFactored ? factor_of(x, row) : 0.0f;
      each<kMostPacks>(0, [&](int i) { put(Pack{x[i]}, row, i, factor); });
      for (int base = kMostPacks; !Format::kFactored && base < count;
           base += kMostPacks) {  // else all_long()
        each<kMostPacks>(base, [&](int i) { x[i] = load(from, base + i); });
        each<kMostPacks>(base, [&](int i) { put(Pack{x[i]}, row, base + i, factor); });
      }
    }
    __syncwarp();
  }
  /// The same of rows as long as they like, by a factor: each is read twice.
  __device__ void all_long() const {
    for (int row = 0; row < block.m; ++row) {
      const bf16* from = block.p.x + row * block.p.x_stride;
      std::uint32_t most = 0;
      for (int i = 0; i < count; ++i) most = greatest(Pack{load(from, i)}, most);
      const float factor = factor_of(most, row);
      for (int i = 0; i < count; ++i) put(Pack{load(from, i)}, row, i, factor);
    }
    __syncwarp();
  }

 private:
  __device__ __forceinline__ bool inside(int i) const { return i * kStep < left; }
  /// A lane's pack i; zeros beyond the row.
  __device__ __forceinline__ uint4 load(const bf16* from, int i) const {
    return inside(i) ? device::load_pack(from + 8 * first + 8 * i * kStep).raw : uint4{};
  }
  /// f(i) for those of the kCount packs from `base` on that the warp has.
  template <int kCount, class F>
  __device__ __forceinline__ void each(int base, const F& f) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (base + i >= count) break;
      f(i);
    }
  }
  __device__ __forceinline__ void normalize(uint4 (&x)[kMostPacks], int row) const {
    float squares = 0;
    each<kNormPacks>(0, [&](int i) {
      const Pack pack{x[i]};
#pragma unroll
      for (int k = 0; k < 8; ++k) squares += pack[k] * pack[k];
    });
    squares = device::warp_all<device::Sum>(squares);
    float* of_warps = block.template of<float>(block.at.norm) + row % 2 * kDecodeWarps;
    if (lane == 0) of_warps[warp] = squares;
    __syncthreads();
    float part[kDecodeWarps];
#pragma unroll
    for (int w = 0; w < kDecodeWarps; w += 4)
      *reinterpret_cast<float4*>(&part[w]) = *reinterpret_cast<const float4*>(of_warps + w);
    float total = part[0];
#pragma unroll
    for (int w = 1; w < kDecodeWarps; ++w) total += part[w];
    const float inverse = rsqrtf(total * block.p.of_column + block.p.eps);
    each<kNormPacks>(0, [&](int i) {
      const Pack pack{x[i]};
      float y[8];
#pragma unroll
      for (int k = 0; k < 8; ++k) y[k] = pack[k] * inverse;
      const uint4 scaled = Pack::of(y).raw;
      using Ops = device::PairOps;
      x[i] = {Ops::multiply(scaled.x, weight[i].x), Ops::multiply(scaled.y, weight[i].y),
              Ops::multiply(scaled.z, weight[i].z), Ops::multiply(scaled.w, weight[i].w)};
    });
  }
  __device__ __forceinline__ void put(const Pack& x, int row, int i, float factor) const {
    if constexpr (Format::kInteger) {
      if (inside(i)) store_digits(x, row, i, factor);
    } else if constexpr (Format::kHalf) {
      if (inside(i)) store(halves_of(x, factor), row, i);
    } else {
      if constexpr (Format::kBiased) store_sum(x, row, i);
      if (inside(i)) store(device::in_order<Format::kOrder>(x.raw), row, i);
    }
  }
  __device__ __forceinline__ void store(const uint4& eight, int row, int i) const {
    *block.template of<uint4>(place + row * x_row_bytes(block.p.columns) + i * kStepBytes) = eight;
  }
  __device__ __forceinline__ void store_sum(const Pack& x, int row, int i) const {
    constexpr int kOfUnit = Layout::kColumns / 8;
    float sum = ((x[0] + x[1]) + (x[2] + x[3])) + ((x[4] + x[5]) + (x[6] + x[7]));
#pragma unroll
    for (int step = kOfUnit / 2; step > 0; step /= 2) sum += __shfl_xor_sync(0xFFFFFFFFu, sum, step);
    if (inside(i) && first % kOfUnit == 0)
      block.template of<float>(block.at.sums)[first / kOfUnit * 8 + i * (kStep / kOfUnit) * 8 + row] = sum;
  }

  // Bits of the greatest magnitude, `most` among them; NaN is above all.
  static __device__ __forceinline__ std::uint32_t greatest(const Pack& x, std::uint32_t most) {
    std::uint32_t high = most, low = 0;  // high: bits of the lower half below; low: one place higher
#pragma unroll
    for (int w = 0; w < 4; ++w) high = max(high, x.word(w) & 0x7FFFFFFFu), low = max(low, x.word(w) << 17);
    return max(high & 0x7FFF0000u, low >> 1);
  }
  __device__ __forceinline__ float factor_of(const uint4 (&x)[kMostPacks], int row) const {
    std::uint32_t most = 0;
    each<kMostPacks>(0, [&](int i) { most = greatest(Pack{x[i]}, most); });
    return factor_of(most, row);
  }
  // The power of two by which the warp's x, a lane's greatest being `most`, comes below 2^(kTop + 1); what
  // undoes it is kept for the row's results.
  __device__ __forceinline__ float factor_of(std::uint32_t most, int row) const {
    constexpr int kTop = Format::kInteger ? 21 : 14;
    most = __reduce_max_sync(0xFFFFFFFFu, most);
    const int exponent = max(static_cast<int>(most >> 23), kTop + 1);  // biased; smaller x keep fewer digits
    const float factor = __uint_as_float(static_cast<std::uint32_t>(2 * 127 + kTop - exponent) << 23);
    const float inverse = __uint_as_float(static_cast<std::uint32_t>(exponent - kTop) << 23);
    const bool finite = most < 0x7F800000u;
    if (lane == 0)
      block.template of<float>(block.at.sums)[row * kDecodeWarps + warp] =
          finite ? inverse : __uint_as_float(0x7FC00000u);
    return finite ? factor : 0.0f;
  }
  // Eight columns in f16: exact, but for what is below 2^-38 of the greatest.
  static __device__ __forceinline__ uint4 halves_of(const Pack& x, float factor) {
    std::uint32_t to[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const __half2 pair = __floats2half2_rn(x[2 * i] * factor, x[2 * i + 1] * factor);
      to[i] = *reinterpret_cast<const std::uint32_t*>(&pair);
    }
    return make_uint4(to[0], to[1], to[2], to[3]);
  }
  // Eight columns as bytes of kDigits planes: x = sum of 256^d digit_d, digits from -128 to 127.
  __device__ __forceinline__ void store_digits(const Pack& x, int row, int i, float factor) const {
    std::uint32_t bytes[8];
#pragma unroll
    for (int k = 0; k < 8; ++k) bytes[k] = digits_of(__float_as_uint(fmaf(x[k], factor, kWholeAbove)));
    const int pitch = x_row_bytes(block.p.columns / 2);
#pragma unroll
    for (int d = 0; d < kDigits; ++d) {
      const std::uint32_t sign = digit_sign(d) * 0x01010101u;
      *block.template of<uint2>(place + (row * kDigits + d) * pitch + i * kStepBytes) =
          make_uint2(plane_of(bytes, 0, d) ^ sign, plane_of(bytes, 4, d) ^ sign);
    }
  }
  // Byte d of four columns, from the decoder's number `first` on.
  static __device__ __forceinline__ std::uint32_t plane_of(const std::uint32_t (&bytes)[8], int first,
                                                           int d) {
    const auto pick = static_cast<std::uint32_t>(d | (4 + d) << 4);
    const auto at = [&](int i) { return bytes[Format::column_of_byte(first + i)]; };
    return __byte_perm(__byte_perm(at(0), at(1), pick), __byte_perm(at(2), at(3), pick), 0x5410);
  }
};

}  // namespace ridge::kernels::cuda
