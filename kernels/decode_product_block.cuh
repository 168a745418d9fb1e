// A block of decode_product.cuh's kernel: its shared memory, how its warps read pieces of codes, and x.
#pragma once

#include "kernels/decode_product_params.cuh"
#include "kernels/device/async_copy.cuh"
#include "kernels/device/barrier.cuh"
#include "kernels/device/block.cuh"
#include "kernels/device/mma.cuh"
#include "kernels/device/pack.cuh"

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
    const bool below = warp < at.rings_below;
    return address(below ? at.ring_below + warp * at.ring_bytes
                         : at.ring + (warp - at.rings_below) * at.ring_bytes);
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
    if constexpr (Format::kTable) device::fill_pair_table<kDecodeThreads>(base, p.values);
    if constexpr (Format::kNested) {
      for (int h = 0; h < kHalves; ++h)
        of<float>(at.map)[256 * h + threadIdx.x] = __ldg(p.half[h].map + threadIdx.x);
    }
  }
};

/// A warp's ring: its stages one after the other, in shared memory.
template <class Format>
struct Ring {
  std::uint32_t begin, end, stage;

  __device__ __forceinline__ Ring(std::uint32_t at, int bytes)
      : begin(at), end(at + static_cast<std::uint32_t>(bytes)), stage(at) {}
  __device__ __forceinline__ void next() {
    stage += Piece<Format>::kStageBytes;
    if (stage == end) stage = begin;
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
        ring(block.ring(of), block.at.ring_bytes),
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
    const std::int64_t row = std::int64_t{tile} * kTileRows;
    const DecodeHalf& source = p.half[half];
    const int at = warp * kPieceBytes + lane % 8 * 16;
    from = source.codes + (row + lane / 8) * p.row_bytes + at;
    left = p.used_bytes - at;
    if constexpr (Of::kScales > 0) {
      const std::int64_t first =
          ((source.first_row + row + (Of::kTiles ? 0 : lane)) >> p.scale.row_shift) * p.scale.across;
      scales = source.scales + first * Format::kScaleBytes + warp * Of::kScaleBytes;
      scales_left = static_cast<int>(p.scale.across) * Format::kScaleBytes - warp * Of::kScaleBytes;
      if constexpr (Format::kHasZeros) zeros = source.zeros + first;
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

/// x into shared memory: normalized where that is wanted, in the decoders' order, with sums of its units; or
/// as digits.
template <class Format, int kHalves>
struct XStage {
  using Layout = typename Format::Layout;
  using Pack = device::Pack<bf16>;
  static constexpr int kEach = kMostPacks;  // packs of a thread at once
  const DecodeBlock<Format, kHalves>& block;
  Pack weight[kNormPacks];

  __device__ __forceinline__ explicit XStage(const DecodeBlock<Format, kHalves>& b) : block(b) {
    if (block.p.norm != nullptr) load(weight, block.p.norm, 0);
  }
  __device__ void all() const {
    const DecodeParams& p = block.p;
    constexpr int kStep = kEach * kDecodeThreads;
    for (int row = 0; row < p.m; ++row) {
      for (int base = 0; 8 * base < p.columns; base += kStep) {
        Pack x[kEach] = {};
        load(x, p.x + row * p.x_stride, base);
        if (p.norm != nullptr) normalize(x);
        const float factor = Format::kInteger ? digits_factor(x, row) : 0.0f;
#pragma unroll
        for (int i = 0; i < kEach; ++i) {
          const int pack = base + i * kDecodeThreads + static_cast<int>(threadIdx.x);
          if (8 * (pack - static_cast<int>(threadIdx.x) % 32) >= p.columns) continue;
          if constexpr (Format::kInteger) {
            store_digits(x[i], row, pack, factor);
          } else {
            store(x[i], row, pack);
          }
        }
      }
    }
  }
  /// The same of rows as long as they like, as digits: each is read twice.
  __device__ void all_long() const {
    for (int row = 0; row < block.p.m; ++row) {
      const bf16* from = block.p.x + row * block.p.x_stride;
      const auto each_pack = [&](const auto& f) {
        for (int pack = static_cast<int>(threadIdx.x); 8 * pack < block.p.columns; pack += kDecodeThreads)
          f(pack, device::load_pack(from + 8 * pack));
      };
      std::uint32_t most = 0;
      each_pack([&](int, const Pack& x) { most = greatest(x, most); });
      const float factor = digits_factor(most, row);
      each_pack([&](int pack, const Pack& x) { store_digits(x, row, pack, factor); });
    }
  }

 private:
  template <int kCount>
  __device__ __forceinline__ void load(Pack (&to)[kCount], const bf16* from, int base) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int pack = base + i * kDecodeThreads + static_cast<int>(threadIdx.x);
      if (8 * pack < block.p.columns) to[i] = device::load_pack(from + 8 * pack);
    }
  }
  // Of the values of all warps, in one order.
  template <class Op, class A>
  __device__ __forceinline__ A of_block(A value) const {
    A* values = block.template of<A>(block.at.norm);
    value = device::warp_all<Op>(value);
    __syncthreads();
    if (threadIdx.x % 32 == 0) values[threadIdx.x / 32] = value;
    __syncthreads();
    A total = values[0];
#pragma unroll
    for (int w = 1; w < kDecodeWarps; ++w) total = Op()(total, values[w]);
    return total;
  }
  __device__ __forceinline__ void normalize(Pack (&x)[kEach]) const {
    float squares = 0;
#pragma unroll
    for (int i = 0; i < kNormPacks; ++i) {
#pragma unroll
      for (int k = 0; k < 8; ++k) squares += x[i][k] * x[i][k];
    }
    const float mean = of_block<device::Sum>(squares) * (1.0f / static_cast<float>(block.p.columns));
    const float inverse = rsqrtf(mean + block.p.eps);
#pragma unroll
    for (int i = 0; i < kNormPacks; ++i) {
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

  // Bits of the greatest magnitude, `most` among them; NaN is above all.
  static __device__ __forceinline__ std::uint32_t greatest(const Pack& x, std::uint32_t most) {
    const std::uint32_t words[4] = {x.raw.x, x.raw.y, x.raw.z, x.raw.w};
#pragma unroll
    for (int w = 0; w < 4; ++w) most = max(most, max(words[w] & 0x7FFF0000u, words[w] << 16 & 0x7FFF0000u));
    return most;
  }
  __device__ __forceinline__ float digits_factor(const Pack (&x)[kEach], int row) const {
    std::uint32_t most = 0;
#pragma unroll
    for (int i = 0; i < kEach; ++i) most = greatest(x[i], most);
    return digits_factor(most, row);
  }
  // By which x, a thread's greatest being `most`, becomes whole numbers below 2^22; what undoes it is kept
  // for the row's results.
  __device__ __forceinline__ float digits_factor(std::uint32_t most, int row) const {
    most = of_block<device::Max>(most);
    const int exponent = max(static_cast<int>(most >> 23), 48);  // biased; smaller rows keep fewer digits
    const float factor = __uint_as_float(static_cast<std::uint32_t>(2 * 127 + 21 - exponent) << 23);
    const float inverse = __uint_as_float(static_cast<std::uint32_t>(exponent - 21) << 23);
    const bool finite = most < 0x7F800000u;
    if (threadIdx.x == 0)
      block.template of<float>(block.at.sums)[row] = finite ? inverse : __uint_as_float(0x7FC00000u);
    return finite ? factor : 0.0f;
  }
  // Eight columns as bytes of kDigits planes: x = sum of 256^d digit_d, digits from -128 to 127.
  __device__ __forceinline__ void store_digits(const Pack& x, int row, int pack, float factor) const {
    if (8 * pack >= block.p.columns) return;
    std::uint32_t bytes[8];
#pragma unroll
    for (int k = 0; k < 8; ++k) bytes[k] = digits_of(__float2int_rn(x[k] * factor));
    const int place = Layout::byte_place(pack);
    const int pitch = x_row_bytes(block.p.columns / 2);
#pragma unroll
    for (int d = 0; d < kDigits; ++d)
      *block.template of<uint2>(block.at.x + (row * kDigits + d) * pitch + place) =
          make_uint2(plane_of(bytes, 0, d), plane_of(bytes, 4, d));
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
