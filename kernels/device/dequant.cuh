// Codes of weight formats as pairs of bf16 in registers: what tensor cores take.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "kernels/quant_bits.h"
#include "kernels/quant_layout.h"

namespace ridge::kernels::device {

struct PairOps {
  static __device__ __forceinline__ __nv_bfloat162 pair(std::uint32_t bits) {
    return *reinterpret_cast<const __nv_bfloat162*>(&bits);
  }
  static __device__ __forceinline__ std::uint32_t bits(__nv_bfloat162 pair) {
    return *reinterpret_cast<const std::uint32_t*>(&pair);
  }
  /// (word & mask) | set, in one instruction: with two constants the compiler would take two.
  static __device__ __forceinline__ std::uint32_t select(std::uint32_t word, std::uint32_t mask,
                                                         std::uint32_t set) {
    std::uint32_t out;
    asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(out) : "r"(word), "r"(mask), "r"(set));
    return out;
  }
  /// (word & mask) ^ flip, likewise.
  static __device__ __forceinline__ std::uint32_t exclude(std::uint32_t word, std::uint32_t mask,
                                                          std::uint32_t flip) {
    std::uint32_t out;
    asm("lop3.b32 %0, %1, %2, %3, 0x6A;" : "=r"(out) : "r"(word), "r"(mask), "r"(flip));
    return out;
  }
  static __device__ __forceinline__ std::uint32_t subtract(std::uint32_t a, std::uint32_t b) {
    return bits(__hsub2(pair(a), pair(b)));
  }
  static __device__ __forceinline__ std::uint32_t multiply(std::uint32_t a, std::uint32_t b) {
    return bits(__hmul2(pair(a), pair(b)));
  }
};

__device__ __forceinline__ std::uint32_t load_shared(std::uint32_t address) {
  std::uint32_t word;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(word) : "r"(address));
  return word;
}

// Of each kind of codes: Layout, the order of pairs, kTogether (units that are read as one), kAhead (how many
// times that many a warp reads before it needs them), kScaleBytes (of a scale), kScaledAtEnd (a row has one
// scale, and sums meet it once) and the decoder of eight number `e` of a run.

/// Decodes to q + kInt4Bias. kZeros: groups have zero points; kBf16: their scales are bf16.
template <int kWords, bool kZeros, bool kBf16>
struct Int4Codes {
  using Layout = UnitLayout<4, kWords>;
  static constexpr PairOrder kOrder = PairOrder::word;
  static constexpr int kTogether = 1, kAhead = kWords == 4 ? 4 : (kZeros ? 6 : 8);
  static constexpr bool kBiased = true, kHasZeros = kZeros, kNarrow = kBf16, kTable = false, kNested = false,
                        kHasNan = false, kScaledAtEnd = false, kDense = false, kInteger = false,
                        kHalf = false, kFactored = false;
  static constexpr int kScaleBytes = kBf16 ? 2 : 4;
  static __device__ __forceinline__ Eight decode(const std::uint32_t (&run)[kWords], int e, std::uint32_t) {
    return int4_eight<PairOps>(run[e]);
  }
};

template <bool kFloat>
struct ByteCodes {
  using Layout = UnitLayout<8, 4>;
  static constexpr PairOrder kOrder = PairOrder::bytes;
  static constexpr int kTogether = 1, kAhead = 4;
  static constexpr bool kBiased = false, kHasZeros = false, kNarrow = false, kTable = false, kNested = false,
                        kHasNan = kFloat, kScaledAtEnd = false, kDense = false, kInteger = false,
                        kHalf = false, kFactored = false;
  static constexpr int kScaleBytes = 4;
  static __device__ __forceinline__ Eight decode(const std::uint32_t (&run)[4], int e, std::uint32_t) {
    Eight out;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if constexpr (kFloat) {
        e4m3_four<PairOps>(run[2 * e + i], out, 2 * i);
      } else {
        int8_four<PairOps>(run[2 * e + i], out, 2 * i);
      }
    }
    return out;
  }
};

// Of codes that are whole numbers: bytes(run, s), those that meet columns 8 s .. of a run, signed, of which
// number i is column column_of_byte(i); and kFactor, what a byte's 1 stands for.

struct CodeBytes {
  std::uint32_t word[2];
};

/// int4 without zero points: q - 8 in the high half of a byte.
template <int kWords, bool kBf16>
struct Int4Bytes {
  using Layout = UnitLayout<4, kWords>;
  static constexpr float kFactor = 1.0f / 16;
  static constexpr bool kBiased = false, kHasZeros = false, kNarrow = kBf16, kTable = false, kNested = false,
                        kHasNan = false, kScaledAtEnd = false, kDense = false, kInteger = true, kHalf = false,
                        kFactored = true;
  static constexpr int kScaleBytes = kBf16 ? 2 : 4;
  static constexpr int column_of_byte(int i) { return int4_column_of_byte(i); }
  static __device__ __forceinline__ CodeBytes bytes(const std::uint32_t (&run)[kWords], int s) {
    return {{int4_high_halves<PairOps>(run[s] << 4), int4_high_halves<PairOps>(run[s])}};
  }
};

struct Int8Bytes {
  using Layout = UnitLayout<8, 4>;
  static constexpr float kFactor = 1;
  static constexpr bool kBiased = false, kHasZeros = false, kNarrow = false, kTable = false, kNested = false,
                        kHasNan = false, kScaledAtEnd = true, kDense = false, kInteger = true, kHalf = false,
                        kFactored = true;
  static constexpr int kScaleBytes = 4;
  static constexpr int column_of_byte(int i) { return i; }
  static __device__ __forceinline__ CodeBytes bytes(const std::uint32_t (&run)[4], int s) {
    return {{run[2 * s], run[2 * s + 1]}};
  }
};

/// fp8 (e4m3) as pairs of f16, by one instruction each (PTX ISA: cvt); NaN stays NaN.
template <bool kAtEnd>
struct Fp8Halves {
  using Layout = UnitLayout<8, 4>;
  static constexpr float kFactor = 1;
  static constexpr bool kBiased = false, kHasZeros = false, kNarrow = false, kTable = false, kNested = false,
                        kHasNan = false, kScaledAtEnd = kAtEnd, kDense = false, kInteger = false,
                        kHalf = true, kFactored = true;
  static constexpr int kScaleBytes = 4;
  static __device__ __forceinline__ Eight decode(const std::uint32_t (&run)[4], int e, std::uint32_t) {
    Eight out;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      asm("{\n"
          ".reg .b16 low, high;\n"
          "mov.b32 {low, high}, %2;\n"
          "cvt.rn.f16x2.e4m3x2 %0, low;\n"
          "cvt.rn.f16x2.e4m3x2 %1, high;\n"
          "}\n"
          : "=r"(out.pair[2 * i]), "=r"(out.pair[2 * i + 1])
          : "r"(run[2 * e + i]));
    }
    return out;
  }
};

/// No codes: pairs of bf16 as they are.
struct DenseCodes {
  using Layout = UnitLayout<16, 4>;
  static constexpr PairOrder kOrder = PairOrder::plain;
  static constexpr int kTogether = 1, kAhead = 4;
  static constexpr bool kBiased = false, kHasZeros = false, kNarrow = false, kTable = false, kNested = false,
                        kHasNan = false, kScaledAtEnd = true, kDense = true, kInteger = false, kHalf = false,
                        kFactored = false;
  static constexpr int kScaleBytes = 0;
  static __device__ __forceinline__ Eight decode(const std::uint32_t (&run)[4], int, std::uint32_t) {
    return {{run[0], run[1], run[2], run[3]}};
  }
};

inline constexpr int kPairTableBytes = 256 * 32 * 4;
/// Dynamic shared memory begins at address 1024 or below: the first multiple of the table's size comes here
/// at the earliest, and what follows the table begins at twice its size.
inline constexpr int kBeforePairTable = kPairTableBytes - 1024;

/// Where in shared memory a block has its table of pairs.
__device__ __forceinline__ std::uint32_t pair_table(std::uint32_t memory) {
  return (memory + kBeforePairTable + kPairTableBytes - 1) / kPairTableBytes * kPairTableBytes;
}

/// Fills the table of the block whose shared memory begins at `memory`: `values` are those of codes, in bf16.
template <int kThreads>
__device__ __forceinline__ void fill_pair_table(std::uint32_t memory, const std::uint16_t (&values)[16]) {
  const std::uint32_t table = pair_table(memory);
  for (int i = static_cast<int>(threadIdx.x); i < kPairTableBytes / 16; i += kThreads) {
    const int byte = i / 8;
    const std::uint32_t pair = values[byte >> 4] | static_cast<std::uint32_t>(values[byte & 15]) << 16;
    asm volatile("st.shared.v4.u32 [%0], {%1, %1, %1, %1};" ::"r"(table + 16 * i), "r"(pair) : "memory");
  }
}

/// nf4 and fp4: pairs from a table [byte, lane], where each lane has a bank of its own. `column` is the
/// address of the lane's: no bit of it is one of a row's offset.
template <bool kDouble, int kUnitsTogether>
struct FlatCodes {
  using Layout = UnitLayout<4, 2>;
  static constexpr PairOrder kOrder = PairOrder::plain;
  static constexpr int kTogether = kUnitsTogether, kAhead = kTogether == 2 ? 4 : 6;
  static constexpr bool kBiased = false, kHasZeros = false, kNarrow = false, kTable = true, kNested = kDouble,
                        kHasNan = false, kScaledAtEnd = false, kDense = false, kInteger = false,
                        kHalf = false, kFactored = false;
  static constexpr int kScaleBytes = kDouble ? 1 : 4;
  static __device__ __forceinline__ Eight decode(const std::uint32_t (&run)[2], int e, std::uint32_t column) {
    const std::uint32_t word = run[e];
    Eight out;
    out.pair[0] = load_shared(PairOps::select(word << 7, 0x7F80u, column));
    out.pair[1] = load_shared(PairOps::select(word >> 1, 0x7F80u, column));
    out.pair[2] = load_shared(PairOps::select(word >> 9, 0x7F80u, column));
    out.pair[3] = load_shared(PairOps::select(word >> 17, 0x7F80u, column));
    return out;
  }
};

/// The same table in the first halves of lines (see kLineBytes): one instruction makes an address of a byte.
/// Where it begins is a constant, which dynamic shared memory does of a kernel that has no other.
inline constexpr int kPairLines = 1024;

/// Fills that table of the block whose shared memory begins at `memory`.
template <int kThreads>
__device__ __forceinline__ void fill_pair_lines(std::uint32_t memory, const std::uint16_t (&values)[16]) {
  if (memory != kPairLines) __trap();
  for (int i = static_cast<int>(threadIdx.x); i < kPairTableBytes / 16; i += kThreads) {
    const int byte = i / 8;
    const std::uint32_t pair = values[byte >> 4] | static_cast<std::uint32_t>(values[byte & 15]) << 16;
    asm volatile(
        "st.shared.v4.u32 [%0], {%1, %1, %1, %1};" ::"r"(kPairLines + byte * kLineBytes + 16 * (i % 8)),
        "r"(pair)
        : "memory");
  }
}

/// nf4 and fp4 with that table: `column` is 4 times the lane.
template <bool kDouble>
struct FlatLines : FlatCodes<kDouble, 1> {
  static __device__ __forceinline__ Eight decode(const std::uint32_t (&run)[2], int e, std::uint32_t column) {
    Eight out;
#pragma unroll
    for (unsigned i = 0; i < 4; ++i)
      asm volatile("ld.shared.u32 %0, [%1 + %2];"
                   : "=r"(out.pair[i])
                   : "r"(__byte_perm(run[e], column, 0x5504u | i << 4)), "n"(kPairLines));
    return out;
  }
};

}  // namespace ridge::kernels::device
