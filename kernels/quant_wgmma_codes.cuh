// Weight formats as the products of four warps read them: a lane's words of a slab become operands of two
// steps of 16 columns at a time.
//
// Of 4 bits, word q of 16 bytes is the next 8 columns of lane q for two steps; of 8 bits, 4 columns for one.
#pragma once

#include <cstdint>

#include "kernels/device/dequant.cuh"

namespace ridge::kernels::device {

/// [chunk of 16 bytes, row g or g + 8]
using SlabWords = std::uint32_t[4][2];
/// Operands of two steps.
using StepPair = std::uint32_t[2][4];

// kBatches: pairs of steps in a slab; kGroup: batches that share a scale, 0 where a row does; kTable: pairs
// come from a table at `column`.
template <int kBatchesOfGroup, bool kZeros, bool kBf16>
struct WideInt4 {
  static constexpr int kBits = 4, kBatches = 4, kGroup = kBatchesOfGroup;
  static constexpr PairOrder kOrder = PairOrder::word;
  static constexpr bool kTable = false, kHasNan = false, kHasZeros = kZeros, kNarrow = kBf16, kNested = false;
  static __device__ __forceinline__ void decode(StepPair& a, const SlabWords& words, int batch,
                                                const std::uint32_t (&bias)[2], std::uint32_t) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const Eight eight = int4_eight<PairOps>(words[batch][h]);
#pragma unroll
      for (int i = 0; i < 4; ++i) a[i / 2][i % 2 * 2 + h] = PairOps::subtract(eight.pair[i], bias[h]);
    }
  }
};

/// nf4 and fp4, with f32 scales or with codes for them.
template <bool kDouble>
struct WideFlat {
  static constexpr int kBits = 4, kBatches = 4, kGroup = 2;
  static constexpr PairOrder kOrder = PairOrder::plain;
  static constexpr bool kTable = true, kHasNan = false, kHasZeros = false, kNarrow = false, kNested = kDouble;
  static __device__ __forceinline__ void decode(StepPair& a, const SlabWords& words, int batch,
                                                const std::uint32_t (&)[2], std::uint32_t column) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const std::uint32_t word = words[batch][h];
      a[0][h] = load_shared(PairOps::select(word << 7, 0x7F80u, column));
      a[0][2 + h] = load_shared(PairOps::select(word >> 1, 0x7F80u, column));
      a[1][h] = load_shared(PairOps::select(word >> 9, 0x7F80u, column));
      a[1][2 + h] = load_shared(PairOps::select(word >> 17, 0x7F80u, column));
    }
  }
};

template <bool kFloat, int kBatchesOfGroup>
struct WideBytes {
  static constexpr int kBits = 8, kBatches = 2, kGroup = kBatchesOfGroup;
  static constexpr PairOrder kOrder = PairOrder::bytes;
  static constexpr bool kTable = false, kHasNan = kFloat, kHasZeros = false, kNarrow = false, kNested = false;
  static __device__ __forceinline__ void decode(StepPair& a, const SlabWords& words, int batch,
                                                const std::uint32_t (&)[2], std::uint32_t) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
#pragma unroll
      for (int step = 0; step < 2; ++step) {
        Eight out;
        if constexpr (kFloat) {
          e4m3_four<PairOps>(words[2 * batch + step][h], out, 0);
        } else {
          int8_four<PairOps>(words[2 * batch + step][h], out, 0);
        }
        a[step][h] = out.pair[0];
        a[step][2 + h] = out.pair[1];
      }
    }
  }
};

}  // namespace ridge::kernels::device
