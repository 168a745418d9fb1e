// A 16-row operand in registers times x from shared memory, on tensor cores.
#pragma once

#include <cstdint>

#include "kernels/quant_bits.h"

namespace ridge::kernels::device {

/// sum += w x' of 16 columns, in bf16 or f16: `low` and `high` are eights of rows g and g + 8, of which pairs
/// `pair` and `pair` + 1 count (PTX ISA: mma.m16n8k16).
template <bool kHalf = false>
__device__ __forceinline__ void mma_16816(float (&sum)[4], const Eight& low, const Eight& high, int pair,
                                          std::uint32_t b0, std::uint32_t b1) {
  if constexpr (kHalf) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(low.pair[pair]), "r"(high.pair[pair]), "r"(low.pair[pair + 1]), "r"(high.pair[pair + 1]),
          "r"(b0), "r"(b1));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(low.pair[pair]), "r"(high.pair[pair]), "r"(low.pair[pair + 1]), "r"(high.pair[pair + 1]),
          "r"(b0), "r"(b1));
  }
}

/// sum += w x' of 32 columns in signed bytes: `low` and `high` are codes of rows g and g + 8 (PTX ISA:
/// mma.m16n8k32).
template <class Bytes>
__device__ __forceinline__ void mma_16832(int (&sum)[4], const Bytes& low, const Bytes& high,
                                          std::uint32_t b0, std::uint32_t b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+r"(sum[0]), "+r"(sum[1]), "+r"(sum[2]), "+r"(sum[3])
      : "r"(low.word[0]), "r"(high.word[0]), "r"(low.word[1]), "r"(high.word[1]), "r"(b0), "r"(b1));
}

/// Eight columns of x in the order of a decoder's pairs.
template <PairOrder kOrder>
__device__ __forceinline__ uint4 in_order(const uint4& raw) {
  const std::uint32_t from[4] = {raw.x, raw.y, raw.z, raw.w};
  std::uint32_t to[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int a = column_of(kOrder, 2 * i), b = column_of(kOrder, 2 * i + 1);
    to[i] = __byte_perm(from[a / 2], from[b / 2],
                        (a % 2 == 0 ? 0x10u : 0x32u) | (b % 2 == 0 ? 0x5400u : 0x7600u));
  }
  return make_uint4(to[0], to[1], to[2], to[3]);
}

}  // namespace ridge::kernels::device
