// What a warp of decode_product.cuh's kernel does with pieces of codes.
#pragma once

#include "kernels/decode_product_block.cuh"

namespace ridge::kernels::cuda {

/// Scales of the second level for a tile's rows of a lane: of a row at most two.
struct NestedScales {
  float first[2], second[2];
  int left[2];  // blocks of the row up to the second
  float offset;
  std::uint32_t map;  // from the block's map on, bytes

  __device__ __forceinline__ void load(const DecodeParams& p, int half, std::int64_t row, int g, bool there) {
    const DecodeScales& scale = p.scale;
    const DecodeHalf& source = p.half[half];
    map = static_cast<std::uint32_t>(half) * 1024;
    if (there) offset = __ldg(source.offset);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const std::int64_t block = source.first_block + (row + g + 8 * h) * scale.row_blocks;
      left[h] = static_cast<int>(kNestedBlock - block % kNestedBlock);
      if (!there) continue;
      const float* at = source.nested + block / kNestedBlock;
      first[h] = __ldg(at);
      second[h] = left[h] < scale.across ? __ldg(at + 1) : 0.0f;
    }
  }
  __device__ __forceinline__ float of(int h, int group) const {
    return group < left[h] ? first[h] : second[h];
  }
};

/// A warp's codes of a piece, and its scales.
template <class Format, int kHalves>
struct WarpCodes {
  using Layout = typename Format::Layout;
  using Of = Piece<Format>;
  const DecodeBlock<Format, kHalves>& block;
  int warp, q, g;
  int place[Of::kUnits];  // of a lane's codes in a stage, by units
  NestedScales nested;

  __device__ __forceinline__ explicit WarpCodes(const DecodeBlock<Format, kHalves>& b)
      : block(b),
        warp(static_cast<int>(threadIdx.x) / 32),
        q(static_cast<int>(threadIdx.x) % 4),
        g(static_cast<int>(threadIdx.x) % 32 / 4) {
#pragma unroll
    for (int u = 0; u < Of::kUnits; ++u) {
      const int byte = u * Layout::kBytes + q * 4 * Layout::kWords;
      place[u] = g * kPieceBytes + 16 * chunk_place<Layout::kWords>(g, byte / 16) + byte % 16;
    }
  }

  /// Codes of rows g and g + 8, by units.
  struct Codes {
    std::uint32_t run[Of::kUnits][2][Layout::kWords];
  };
  __device__ __forceinline__ void load(Codes& to, std::uint32_t stage) const {
#pragma unroll
    for (int u = 0; u < Of::kUnits; ++u) {
#pragma unroll
      for (int h = 0; h < 2; ++h)
        load_words(to.run[u][h], stage + static_cast<std::uint32_t>(place[u] + 8 * h * kPieceBytes));
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
  static __device__ __forceinline__ std::uint32_t load_byte(std::uint32_t from) {
    std::uint32_t byte;
    asm volatile("ld.shared.u8 %0, [%1];" : "=r"(byte) : "r"(from));
    return byte;
  }
  /// Of unit `u` of a piece whose scales are at `scales`, number `unit` of the row, in row g + 8 h.
  __device__ __forceinline__ float scale_of(std::uint32_t scales, int u, int unit, int h) const {
    const int row = Of::kTiles ? 0 : g + 8 * h;
    const auto at = static_cast<std::uint32_t>(Of::kTiles ? 0 : u);
    const std::uint32_t from = scales + static_cast<std::uint32_t>(row * Of::kScaleBytes);
    if constexpr (Format::kNested) {  // two roundings, as elsewhere
      const std::uint32_t map = block.address(block.at.map) + nested.map + 4 * load_byte(from + at);
      const float part = __uint_as_float(device::load_shared(map));
      return __fadd_rn(__fmul_rn(part, nested.of(h, unit)), nested.offset);
    } else if constexpr (Format::kNarrow) {
      std::uint16_t bits;
      asm volatile("ld.shared.u16 %0, [%1];" : "=h"(bits) : "r"(from + 2 * at));
      return __uint_as_float(static_cast<std::uint32_t>(bits) << 16);
    } else {
      return __uint_as_float(device::load_shared(from + 4 * at));
    }
  }
  /// Calls f(u) for the units of a piece that there are.
  template <class F>
  __device__ __forceinline__ void each_unit(int piece, const F& f) const {
    const int left = block.p.units - piece * Of::kUnits;
    if (left >= Of::kUnits) {  // no branches: units overlap
#pragma unroll
      for (int u = 0; u < Of::kUnits; ++u) f(u);
    } else {
#pragma unroll
      for (int u = 0; u < Of::kUnits; ++u) {
        if (u < left) f(u);
      }
    }
  }
};

/// What a warp has of a tile, where codes become bf16 or f16.
template <class Format, int kHalves>
struct DecodeWarp : WarpCodes<Format, kHalves> {
  using Base = WarpCodes<Format, kHalves>;
  using Base::block, Base::warp, Base::q, Base::g, Base::load_byte, Base::load_words;
  using typename Base::Codes, typename Base::Layout, typename Base::Of;
  static constexpr int kChains = 2;  // of sums
  std::uint32_t x_row, x_unit, sums, column;
  float total[kChains][4] = {};  // the second: of rows with one scale

  __device__ __forceinline__ explicit DecodeWarp(const DecodeBlock<Format, kHalves>& b) : Base(b) {
    const bool there = g < b.p.m;  // else zeros
    x_row = b.address((there ? b.at.x + g * x_row_bytes(b.p.columns) : b.at.no_x) + 16 * q);
    x_unit = there ? 2 * Layout::kColumns : 0;
    sums = b.address(b.at.sums + 8 * q);
    column = Format::kTable ? device::pair_table(b.base) + 4 * (threadIdx.x % 32) : 0;
  }

  /// The piece that lies in `stage`.
  __device__ __forceinline__ void multiply(const Codes& codes, int piece, std::uint32_t stage) {
    const std::uint32_t scales = stage + kTileRows * kPieceBytes;
    this->each_unit(piece, [&](int u) { multiply(codes.run[u], piece, u, scales); });
  }
  /// This warp's sums of a tile, [M, 16].
  __device__ __forceinline__ void leave(float* partial) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int row = g + e / 2 * 8, column = 2 * q + e % 2;
      float sum = total[0][e] + total[1][e];
      if (column < block.p.m) {
        if constexpr (Format::kFactored)
          sum *= Format::kFactor * block.template of<float>(block.at.sums)[column * kDecodeWarps + warp];
        partial[(warp * block.p.m + column) * kTileRows + row] = sum;
      }
      total[0][e] = total[1][e] = 0;
    }
  }

 private:
  __device__ __forceinline__ void multiply(const std::uint32_t (&run)[2][Layout::kWords], int piece, int u,
                                           std::uint32_t scales) {
    const int unit = piece * Of::kUnits + u;
    if constexpr (Format::kScaledAtEnd) {
      multiply(run, unit, total[0], total[1]);
    } else if constexpr (Of::kUnits > 2) {  // units are chains enough
      float sum[4] = {};
      multiply(run, unit, sum, sum);
      add(sum, unit, u, scales);
    } else {
      float sum[2][4] = {};
      multiply(run, unit, sum[0], sum[1]);
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[0][i] += sum[1][i];
      add(sum[0], unit, u, scales);
    }
  }
  __device__ __forceinline__ void multiply(const std::uint32_t (&run)[2][Layout::kWords], int unit,
                                           float (&even)[4], float (&odd)[4]) const {
    const std::uint32_t x = x_row + static_cast<std::uint32_t>(unit) * x_unit;
#pragma unroll
    for (int e = 0; e < Layout::kEights; ++e) {
      const Eight low = Format::decode(run[0], e, column), high = Format::decode(run[1], e, column);
      std::uint32_t b[4];
      load_words(b, x + static_cast<std::uint32_t>(16 * Layout::place_of(0, e)));
      device::mma_16816<Format::kHalf>(even, low, high, 0, b[0], b[1]);
      device::mma_16816<Format::kHalf>(odd, low, high, 2, b[2], b[3]);
    }
  }
  // total += scale (sum - bias times the unit's sum of x)
  __device__ __forceinline__ void add(const float (&sum)[4], int unit, int u, std::uint32_t scales) {
    float of_x[2] = {};
    if constexpr (Format::kBiased)
      asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];"
                   : "=f"(of_x[0]), "=f"(of_x[1])
                   : "r"(sums + static_cast<std::uint32_t>(32 * unit)));
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float scale = this->scale_of(scales, u, unit, h);
      float bias = kInt4Bias + 8;
      if constexpr (Format::kHasZeros) {
        const int at = kTileRows * Of::kScaleBytes + (g + 8 * h) * Of::kZeroBytes + unit % Of::kZeroBytes;
        bias = kInt4Bias + static_cast<float>(load_byte(scales + static_cast<std::uint32_t>(at)));
      }
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const float value = Format::kBiased ? fmaf(-bias, of_x[c], sum[2 * h + c]) : sum[2 * h + c];
        total[0][2 * h + c] = fmaf(scale, value, total[0][2 * h + c]);
      }
    }
  }
};

/// What a warp has of a tile, where codes are whole numbers: eight columns of a product are the planes of
/// digits of two rows of x, and for each one that counts for nothing. Sums of products are exact.
template <class Format, int kHalves, int kNT>
struct IntegerWarp : WarpCodes<Format, kHalves> {
  using Base = WarpCodes<Format, kHalves>;
  using Base::block, Base::warp, Base::q, Base::g, Base::load_words;
  using typename Base::Codes, typename Base::Layout, typename Base::Of;
  std::uint32_t x_row[kNT], x_unit[kNT];
  float total[kNT][4] = {};
  int whole[kNT][4] = {};  // rows with one scale

  __device__ __forceinline__ explicit IntegerWarp(const DecodeBlock<Format, kHalves>& b) : Base(b) {
#pragma unroll
    for (int n = 0; n < kNT; ++n) {
      const int m = 2 * n + g / 4;
      const bool there = g % 4 < kDigits && m < b.p.m;  // else zeros
      const int plane = b.at.x + (m * kDigits + g % 4) * x_row_bytes(b.p.columns / 2);
      x_row[n] = b.address((there ? plane : b.at.no_x) + Layout::byte_place_of(q, 0));
      x_unit[n] = there ? Layout::kColumns : 0;
    }
  }
  __device__ __forceinline__ void multiply(const Codes& codes, int piece, std::uint32_t stage) {
    const std::uint32_t scales = stage + kTileRows * kPieceBytes;
    this->each_unit(piece, [&](int u) {
      const int unit = piece * Of::kUnits + u;
      if constexpr (Format::kScaledAtEnd) {
        multiply(codes.run[u], unit, whole);
      } else {
        int sum[kNT][4] = {};
        multiply(codes.run[u], unit, sum);
        const float scale[2] = {this->scale_of(scales, u, unit, 0), this->scale_of(scales, u, unit, 1)};
#pragma unroll
        for (int n = 0; n < kNT; ++n) {
#pragma unroll
          for (int e = 0; e < 4; ++e)
            total[n][e] = fmaf(scale[e / 2], static_cast<float>(sum[n][e]), total[n][e]);
        }
      }
    });
  }
  /// This warp's sums of a tile, [M, 16].
  __device__ __forceinline__ void leave(float* partial) {
#pragma unroll
    for (int n = 0; n < kNT; ++n) {
      const int m = 2 * n + q / 2;  // lanes with an even q have digits 0 and 1, their neighbours 2
      const float factor = Format::kFactor * block.template of<float>(block.at.sums)[m * kDecodeWarps + warp];
      float sum[2];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float part[2];
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const int e = 2 * h + c;
          part[c] = Format::kScaledAtEnd ? static_cast<float>(whole[n][e]) : total[n][e];
          total[n][e] = 0;
          whole[n][e] = 0;
        }
        const float high = __shfl_xor_sync(0xFFFFFFFFu, part[0], 1);
        sum[h] = factor * fmaf(65536.0f, high, fmaf(256.0f, part[1], part[0]));
      }
      float* to = partial + (warp * block.p.m + m) * kTileRows + g;
      if (q % 2 == 0 && m < block.p.m) to[0] = sum[0], to[8] = sum[1];
    }
  }

 private:
  __device__ __forceinline__ void multiply(const std::uint32_t (&run)[2][Layout::kWords], int unit,
                                           int (&sum)[kNT][4]) const {
    constexpr int kSteps = Layout::kRun / 8;  // of 32 columns
    std::uint32_t x[kNT][kSteps][2];
#pragma unroll
    for (int n = 0; n < kNT; ++n) {
      const std::uint32_t from = x_row[n] + static_cast<std::uint32_t>(unit) * x_unit[n];
      if constexpr (kSteps == 1) {
        load_words(x[n][0], from);
      } else {
#pragma unroll
        for (int s = 0; s < kSteps; s += 2) {
          std::uint32_t four[4];
          load_words(four, from + static_cast<std::uint32_t>(Layout::byte_place_of(0, s)));
          x[n][s][0] = four[0], x[n][s][1] = four[1], x[n][s + 1][0] = four[2], x[n][s + 1][1] = four[3];
        }
      }
    }
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      const auto low = Format::bytes(run[0], s), high = Format::bytes(run[1], s);
#pragma unroll
      for (int n = 0; n < kNT; ++n) device::mma_16832(sum[n], low, high, x[n][s][0], x[n][s][1]);
    }
  }
};

}  // namespace ridge::kernels::cuda
