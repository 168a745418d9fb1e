// Instructions of sm_80 and later: products of bf16 on tensor cores, and copies to shared memory that run
// beside arithmetic (PTX ISA: mma.m16n8k16, ldmatrix, cp.async).
//
// In a warp, lane l holds rows l / 4 and l / 4 + 8 and the column pairs 2 (l % 4) and 2 (l % 4) + 8 of a 16 x
// 16 operand, and the same rows and columns 2 (l % 4), + 1 of a 16 x 8 sum.
#pragma once

#include <cuda_runtime.h>

#include "core/base/dtype.h"

namespace ridge::kernels::cuda {

/// A 16 x 16 left operand, or two 16 x 8 right ones: pairs of bf16.
struct Fragment {
  unsigned pair[4];
};

__device__ __forceinline__ unsigned shared_address(const void* at) {
  return static_cast<unsigned>(__cvta_generic_to_shared(at));
}

/// Four 8 x 8 matrices; lanes 8 m .. 8 m + 7 give the rows of matrix m, each 16 bytes.
__device__ __forceinline__ Fragment load_matrices(const bf16* row) {
  Fragment f;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(f.pair[0]), "=r"(f.pair[1]), "=r"(f.pair[2]), "=r"(f.pair[3])
               : "r"(shared_address(row))
               : "memory");
  return f;
}
/// The same, each matrix transposed.
__device__ __forceinline__ Fragment load_transposed(const bf16* row) {
  Fragment f;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(f.pair[0]), "=r"(f.pair[1]), "=r"(f.pair[2]), "=r"(f.pair[3])
               : "r"(shared_address(row))
               : "memory");
  return f;
}

/// sum += left times the 16 x 8 operand (first, second).
__device__ __forceinline__ void multiply(float (&sum)[4], const Fragment& left, unsigned first,
                                         unsigned second) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
      : "r"(left.pair[0]), "r"(left.pair[1]), "r"(left.pair[2]), "r"(left.pair[3]), "r"(first), "r"(second));
}

__device__ __forceinline__ unsigned pack(float low, float high) {
  unsigned pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

/// Starts to copy 16 bytes, or to write zeros in their place.
__device__ __forceinline__ void copy_async(bf16* to, const bf16* from, bool inside) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from),
               "r"(inside ? 16 : 0)
               : "memory");
}
/// Waits for the copies that this thread has started.
__device__ __forceinline__ void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

}  // namespace ridge::kernels::cuda
