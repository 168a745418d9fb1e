// What a warp of decode_product.cuh's kernel does with pieces of codes.
#pragma once

#include "kernels/decode_product_block.cuh"

namespace ridge::kernels::cuda {

/// Scales of the second level for a lane's two rows of a tile: of a row at most two.
struct NestedScales {
  float first[2], second[2];
  int left[2];  // pieces of the row up to the second, in which a lane's block is of the first
  __device__ __forceinline__ float of(int h, int piece) const {
    return piece < left[h] ? first[h] : second[h];
  }
};

/// Where they are, tile after tile.
struct NestedReader {
  int block[2];  // of the rows, the first
  float offset[2];

  __device__ __forceinline__ void begin(const DecodeParams& p, int g) {
    const int blocks = p.row_blocks;
    const int row = static_cast<int>(blockIdx.x) * p.rows + g;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      block[h] = static_cast<int>(p.first_block[h]) + (row + (p.gated() ? 0 : 8 * h)) * blocks;
      offset[h] = __ldg(p.offset[h]);
    }
  }
  __device__ __forceinline__ NestedScales read(const DecodeParams& p, int q) const {
    NestedScales scales;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      constexpr auto kOfBlock = static_cast<unsigned>(kNestedBlock);
      const auto number = static_cast<unsigned>(block[h]);
      const float* at = p.nested[h] + number / kOfBlock;
      const auto left = static_cast<int>(kOfBlock - number % kOfBlock);
      scales.left[h] = (left - q + 3) >> 2;
      scales.first[h] = __ldg(at);
      scales.second[h] = left < p.across ? __ldg(at + 1) : 0.0f;
    }
    return scales;
  }
  __device__ __forceinline__ void next(const DecodeParams& p) {
    block[0] += p.turn.blocks, block[1] += p.turn.blocks;
  }
};

/// A warp's codes of a piece, and its scales.
template <class Format>
struct WarpCodes {
  using Layout = typename Format::Layout;
  using Of = Piece<Format>;
  const DecodeBlock<Format>& block;
  int warp, q, g;
  int place[Of::kUnits];  // of a lane's codes in a stage, by units
  NestedReader nested_reader;
  NestedScales nested;

  __device__ __forceinline__ explicit WarpCodes(const DecodeBlock<Format>& b)
      : block(b),
        warp(static_cast<int>(threadIdx.x / 32)),
        q(static_cast<int>(threadIdx.x % 4)),
        g(static_cast<int>(threadIdx.x % 32 / 4)) {
#pragma unroll
    for (int u = 0; u < Of::kUnits; ++u) {
      const int byte = u * Layout::kBytes + q * 4 * Layout::kWords;
      place[u] = static_cast<int>(kept(
          static_cast<unsigned>(g * Of::kLine + 16 * chunk_place<Layout::kWords>(g, byte / 16) + byte % 16)));
    }
  }

  /// Reads what the warp keeps of x, which is there.
  __device__ __forceinline__ void begin() {}
  // What undoes the power of two of x's row, of this warp's columns.
  __device__ __forceinline__ float factor_of(int row) const {
    return Format::kFactor * block.template of<float>(block.at.sums)[row * kDecodeWarps + warp];
  }
  /// Codes of rows g and g + 8, by units.
  struct Codes {
    std::uint32_t run[Of::kUnits][2][Layout::kWords];
  };
  __device__ __forceinline__ void load(Codes& to, const Stage& stage) const {
#pragma unroll
    for (int u = 0; u < Of::kUnits; ++u) {
#pragma unroll
      for (int h = 0; h < 2; ++h)
        load_words(to.run[u][h], stage.codes + static_cast<std::uint32_t>(place[u] + 8 * h * Of::kLine));
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
  /// Of x, in lanes whose row there is: others keep the zeros that they have.
  static __device__ __forceinline__ void load_x(std::uint32_t (&to)[4], std::uint32_t from,
                                                std::uint32_t there) {
    asm volatile(
        "{\n"
        ".reg .pred there;\n"
        "setp.ne.u32 there, %5, 0;\n"
        "@there ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];\n"
        "}\n"
        : "+r"(to[0]), "+r"(to[1]), "+r"(to[2]), "+r"(to[3])
        : "r"(from), "r"(there));
  }
  static __device__ __forceinline__ void load_x(std::uint32_t (&to)[2], std::uint32_t from,
                                                std::uint32_t there) {
    asm volatile(
        "{\n"
        ".reg .pred there;\n"
        "setp.ne.u32 there, %3, 0;\n"
        "@there ld.shared.v2.u32 {%0, %1}, [%2];\n"
        "}\n"
        : "+r"(to[0]), "+r"(to[1])
        : "r"(from), "r"(there));
  }
  static __device__ __forceinline__ std::uint32_t load_byte(std::uint32_t from) {
    std::uint32_t byte;
    asm volatile("ld.shared.u8 %0, [%1];" : "=r"(byte) : "r"(from));
    return byte;
  }
  /// Scales of a piece, which are at `scales`, in rows g and g + 8, by units.
  struct Scales {
    float of[Of::kUnits][2];
  };
  __device__ __forceinline__ void load_scales(Scales& to, std::uint32_t scales, int piece) const {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = Of::kTiles ? h : g + 8 * h;
      const std::uint32_t from = scales + static_cast<std::uint32_t>(row * Of::kScaleBytes);
      if constexpr (Format::kNested) {
        nested_scales(to, h, from, piece);
      } else if constexpr (Of::kTiles) {
#pragma unroll
        for (int u = 0; u < Of::kUnits; ++u) to.of[u][h] = __uint_as_float(device::load_shared(from));
      } else {
        constexpr int kWords = Of::kScaleBytes / 4, kEach = kWords < 4 ? kWords : 4;
#pragma unroll
        for (int w = 0; w < kWords; w += kEach) {
          std::uint32_t words[kEach];
          load_words(words, from + static_cast<std::uint32_t>(4 * w));
#pragma unroll
          for (int i = 0; i < kEach; ++i) {
            if constexpr (Format::kNarrow) {
              to.of[2 * (w + i)][h] = __uint_as_float(words[i] << 16);
              to.of[2 * (w + i) + 1][h] = __uint_as_float(words[i] & 0xFFFF0000u);
            } else {
              to.of[w + i][h] = __uint_as_float(words[i]);
            }
          }
        }
      }
    }
  }
  // Each lane of a row finds one unit's.
  __device__ __forceinline__ void nested_scales(Scales& to, int h, std::uint32_t from, int piece) const {
    static_assert(Of::kUnits == 4);
    const float scale = nested_scale(h, from + static_cast<std::uint32_t>(q), piece);
#pragma unroll
    for (int u = 0; u < 4; ++u) to.of[u][h] = __shfl_sync(0xFFFFFFFFu, scale, u, 4);
  }
  // Of the row's unit q, whose code is at `from`, by two roundings, as elsewhere.
  __device__ __forceinline__ float nested_scale(int h, std::uint32_t from, int piece) const {
    const std::uint32_t map = block.address(block.at.map + 1024 * h);
    const float part = __uint_as_float(device::load_shared(map + 4 * load_byte(from)));
    return __fadd_rn(__fmul_rn(part, nested.of(h, piece)), nested_reader.offset[h]);
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
template <class Format, bool kOneRow>
struct DecodeWarp : WarpCodes<Format> {
  using Base = WarpCodes<Format>;
  using Base::block, Base::warp, Base::q, Base::g, Base::load_byte, Base::load_x;
  using typename Base::Codes, typename Base::Layout, typename Base::Of, typename Base::Scales;
  static constexpr int kInFlight = 4;  // eights of x
  std::uint32_t x_row, sums, column;
  std::uint32_t there;  // x's row g
  std::uint32_t x[kInFlight][4] = {};
  static constexpr int kTotals = Of::kSpread ? Of::kUnits : 2;
  float total[kTotals][4] = {};  // of units, as SpreadWarp has them; or two chains of rows with one scale
  float factor = 1;              // of one row

  __device__ __forceinline__ explicit DecodeWarp(const DecodeBlock<Format>& b) : Base(b) {
    there = kept(g < b.m ? 1 : 0);
    x_row = kept(b.address(b.at.x + (there ? g : 0) * x_row_bytes(b.p.columns) + 16 * q));
    sums = b.address(b.at.sums + 8 * q);
    column = 4 * (threadIdx.x % 32);
  }

  __device__ __forceinline__ void begin() {
    if constexpr (kOneRow && Format::kFactored) factor = this->factor_of(0);
  }
  /// The piece that lies in `stage`.
  __device__ __forceinline__ void multiply(const Codes& codes, int piece, const Stage& stage) {
    Scales scales;
    if constexpr (!Format::kScaledAtEnd) this->load_scales(scales, stage.scales, piece);
    this->each_unit(piece, [&](int u) { multiply(codes.run[u], piece, u, scales.of[u], stage.scales); });
  }
  /// This warp's sums of a tile, [M, 16].
  __device__ __forceinline__ void leave(float* partial) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const int row = g + e / 2 * 8, column = 2 * q + e % 2;
      float sum = total[0][e] + total[1][e];
      if constexpr (Of::kSpread) sum += total[2][e] + total[3][e];
      if (column < block.m) {
        if constexpr (Format::kFactored) sum *= kOneRow ? factor : this->factor_of(column);
        partial[(warp * block.m + column) * kTileRows + row] = sum;
      }
#pragma unroll
      for (int i = 0; i < kTotals; ++i) total[i][e] = 0;
    }
  }

 private:
  __device__ __forceinline__ void multiply(const std::uint32_t (&run)[2][Layout::kWords], int piece, int u,
                                           const float (&scale)[2], std::uint32_t at) {
    const int unit = piece * Of::kUnits + u;
    if constexpr (Format::kScaledAtEnd) {
      multiply(run, unit, u, total[0], total[1]);
    } else if constexpr (Of::kUnits > 2) {  // units are chains enough
      float sum[4] = {};
      multiply(run, unit, u, sum, sum);
      add(sum, unit, scale, at, total[Of::kSpread ? u : 0]);
    } else {
      float sum[2][4] = {};
      multiply(run, unit, u, sum[0], sum[1]);
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[0][i] += sum[1][i];
      add(sum[0], unit, scale, at, total[0]);
    }
  }
  __device__ __forceinline__ void multiply(const std::uint32_t (&run)[2][Layout::kWords], int unit, int u,
                                           float (&even)[4], float (&odd)[4]) {
    const std::uint32_t from = x_row + static_cast<std::uint32_t>(unit * 2 * Layout::kColumns);
#pragma unroll
    for (int e = 0; e < Layout::kEights; ++e) {
      const Eight low = Format::decode(run[0], e, column), high = Format::decode(run[1], e, column);
      std::uint32_t(&b)[4] = x[(u * Layout::kEights + e) % kInFlight];
      load_x(b, from + static_cast<std::uint32_t>(16 * Layout::place_of(0, e)), there);
      device::mma_16816<Format::kHalf>(even, low, high, 0, b[0], b[1]);
      device::mma_16816<Format::kHalf>(odd, low, high, 2, b[2], b[3]);
    }
  }
  // to += scale (sum - bias times the unit's sum of x)
  __device__ __forceinline__ void add(const float (&sum)[4], int unit, const float (&scale)[2],
                                      std::uint32_t scales, float (&to)[4]) const {
    float of_x[2] = {};
    if constexpr (Format::kBiased)
      asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];"
                   : "=f"(of_x[0]), "=f"(of_x[1])
                   : "r"(sums + static_cast<std::uint32_t>(32 * unit)));
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float bias = kInt4Bias + 8;
      if constexpr (Format::kHasZeros) {
        const int at = kTileRows * Of::kScaleBytes + (g + 8 * h) * Of::kZeroBytes + unit % Of::kZeroBytes;
        bias = kInt4Bias + static_cast<float>(load_byte(scales + static_cast<std::uint32_t>(at)));
      }
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const float value = Format::kBiased ? fmaf(-bias, of_x[c], sum[2 * h + c]) : sum[2 * h + c];
        to[2 * h + c] = fmaf(scale[h], value, to[2 * h + c]);
      }
    }
  }
};

/// What a warp has of a tile of one or two rows of x, where a piece is four units with scales of their own:
/// columns 2u and 2u + 1 of a product are unit u's, in which the others' x is zero. So lane q of a row ends
/// up with unit q's sums. Their bits are DecodeWarp's: zeros change none, and totals are of units there too.
template <class Format, int kRows>
struct SpreadWarp : WarpCodes<Format> {
  using Base = WarpCodes<Format>;
  using Base::block, Base::warp, Base::q, Base::g, Base::load_x;
  using typename Base::Codes, typename Base::Layout, typename Base::Of;
  static_assert(Of::kUnits == 4 && kRows <= 2);
  std::uint32_t x_row, column, own;  // own: of a stage's scales
  int unit;                          // whose x this lane has; 4: none's
  std::uint32_t x[Of::kUnits][4] = {};
  float total[2][kRows] = {};  // of rows g and g + 8

  __device__ __forceinline__ explicit SpreadWarp(const DecodeBlock<Format>& b) : Base(b) {
    const int m = g % 2;
    unit = m < kRows ? g / 2 : Of::kUnits;
    x_row = b.address(b.at.x + (m < kRows ? m : 0) * x_row_bytes(b.p.columns) + 16 * q);
    column = kept(4 * (threadIdx.x % 32));
    own = kept(threadIdx.x % 32 * Format::kScaleBytes);
  }
  /// The piece that lies in `stage`, which is whole.
  __device__ __forceinline__ void multiply(const Codes& codes, int piece, const Stage& stage) {
    if (piece >= block.p.pieces) return;
    const std::uint32_t from = x_row + static_cast<std::uint32_t>(piece * Of::kUnits * 2 * Layout::kColumns);
    const float scale[2] = {scale_of(0, stage, piece), scale_of(1, stage, piece)};
    float sum[2][4] = {};
#pragma unroll
    for (int e = 0; e < Layout::kEights; ++e) {
#pragma unroll
      for (int u = 0; u < Of::kUnits; ++u) {
        const Eight low = Format::decode(codes.run[u][0], e, column),
                    high = Format::decode(codes.run[u][1], e, column);
        load_x(x[u],
               from + static_cast<std::uint32_t>(2 * u * Layout::kColumns + 16 * Layout::place_of(0, e)),
               unit == u ? 1 : 0);
        device::mma_16816<Format::kHalf>(sum[u % 2], low, high, 0, x[u][0], x[u][1]);
        device::mma_16816<Format::kHalf>(sum[u % 2], low, high, 2, x[u][2], x[u][3]);
      }
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
#pragma unroll
      for (int m = 0; m < kRows; ++m)
        total[h][m] = fmaf(scale[h], sum[0][2 * h + m] + sum[1][2 * h + m], total[h][m]);
    }
  }
  /// This warp's sums of a tile, [M, 16].
  __device__ __forceinline__ void leave(float* partial) {
#pragma unroll
    for (int m = 0; m < kRows; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float sum = total[h][m];
        sum += __shfl_xor_sync(0xFFFFFFFFu, sum, 1);
        sum += __shfl_xor_sync(0xFFFFFFFFu, sum, 2);
        if (q == h) partial[(warp * kRows + m) * kTileRows + g + 8 * h] = sum;
        total[h][m] = 0;
      }
    }
  }

 private:
  // Of the lane's unit q in row g + 8 h.
  __device__ __forceinline__ float scale_of(int h, const Stage& stage, int piece) const {
    const std::uint32_t from = stage.scales + own + static_cast<std::uint32_t>(32 * h * Format::kScaleBytes);
    if constexpr (Format::kNested) return this->nested_scale(h, from, piece);
    return __uint_as_float(device::load_shared(from));
  }
};

/// What a warp has of a tile, where codes are whole numbers: eight columns of a product are the planes of
/// digits of two rows of x, and for each one that counts for nothing. Sums of products are exact.
template <class Format, int kNT>
struct IntegerWarp : WarpCodes<Format> {
  using Base = WarpCodes<Format>;
  using Base::block, Base::warp, Base::q, Base::g, Base::load_x;
  using typename Base::Codes, typename Base::Layout, typename Base::Of, typename Base::Scales;
  static constexpr int kSteps = Layout::kRun / 8;  // of 32 columns, of a unit
  static constexpr int kTogether = kSteps < 2 ? 1 : 2;
  static constexpr int kInFlight = kNT > 1 ? 2 : 4;  // steps' x, of kTogether
  std::uint32_t x_row[kNT];
  std::uint32_t there[kNT];
  std::uint32_t x[kNT][kInFlight][2 * kTogether] = {};
  float total[kNT][2] = {};  // of rows g and g + 8: digits 0 and 1, or in lanes with an odd q digit 2
  int whole[kNT][4] = {};    // rows with one scale
  float factor = 1;          // of two rows at most

  __device__ __forceinline__ explicit IntegerWarp(const DecodeBlock<Format>& b) : Base(b) {
#pragma unroll
    for (int n = 0; n < kNT; ++n) {
      const int m = 2 * n + g / 4;
      there[n] = kept(g % 4 < kDigits && m < b.m ? 1 : 0);
      const int plane = there[n] != 0 ? m * kDigits + g % 4 : 0;
      x_row[n] = kept(b.address(b.at.x + plane * x_row_bytes(b.p.columns / 2) + Layout::byte_place_of(q, 0)));
    }
  }
  __device__ __forceinline__ void begin() {
    if constexpr (kNT == 1) factor = this->factor_of(q / 2);
  }
  __device__ __forceinline__ void multiply(const Codes& codes, int piece, const Stage& stage) {
    Scales scales;
    if constexpr (!Format::kScaledAtEnd) this->load_scales(scales, stage.scales, piece);
    this->each_unit(piece, [&](int u) {
      const int unit = piece * Of::kUnits + u;
      if constexpr (Format::kScaledAtEnd) {
        multiply(codes.run[u], unit, u, whole);
      } else {
        int sum[kNT][4] = {};
        multiply(codes.run[u], unit, u, sum);
#pragma unroll
        for (int n = 0; n < kNT; ++n) {
#pragma unroll
          for (int h = 0; h < 2; ++h)  // below 2^30
            total[n][h] = fmaf(scales.of[u][h], static_cast<float>(sum[n][2 * h] + 256 * sum[n][2 * h + 1]),
                               total[n][h]);
        }
      }
    });
  }
  /// This warp's sums of a tile, [M, 16].
  __device__ __forceinline__ void leave(float* partial) {
#pragma unroll
    for (int n = 0; n < kNT; ++n) {
      const int m = 2 * n + q / 2;  // lanes with an even q have digits 0 and 1, their neighbours 2
      const float by = kNT == 1 ? factor : this->factor_of(m);
      float sum[2];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        if constexpr (Format::kScaledAtEnd) {
          int(&of)[4] = whole[n];
          total[n][h] = fmaf(256.0f, static_cast<float>(of[2 * h + 1]), static_cast<float>(of[2 * h]));
          of[2 * h] = of[2 * h + 1] = 0;
        }
        const float high = __shfl_xor_sync(0xFFFFFFFFu, total[n][h], 1);
        sum[h] = by * fmaf(65536.0f, high, total[n][h]);
        total[n][h] = 0;
      }
      float* to = partial + (warp * block.m + m) * kTileRows + g;
      if (q % 2 == 0 && m < block.m) to[0] = sum[0], to[8] = sum[1];
    }
  }

 private:
  __device__ __forceinline__ void multiply(const std::uint32_t (&run)[2][Layout::kWords], int unit, int u,
                                           int (&sum)[kNT][4]) {
#pragma unroll
    for (int s = 0; s < kSteps; s += kTogether) {
      const int in_flight = (u * kSteps + s) / kTogether % kInFlight;
#pragma unroll
      for (int n = 0; n < kNT; ++n)
        load_x(x[n][in_flight],
               x_row[n] + static_cast<std::uint32_t>(unit * Layout::kColumns + Layout::byte_place_of(0, s)),
               there[n]);
#pragma unroll
      for (int t = 0; t < kTogether; ++t) {
        const auto low = Format::bytes(run[0], s + t), high = Format::bytes(run[1], s + t);
#pragma unroll
        for (int n = 0; n < kNT; ++n)
          device::mma_16832(sum[n], low, high, x[n][in_flight][2 * t], x[n][in_flight][2 * t + 1]);
      }
    }
  }
};

}  // namespace ridge::kernels::cuda
