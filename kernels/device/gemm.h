// cuBLASLt: one product as the library names it, planned once for each shape.
#pragma once

#include <cublasLt.h>

#include <cstdint>

#include "core/base/stream.h"

namespace ridge::kernels::device {

/// A column-major matrix, or with `transposed` the transpose of one.
struct GemmOperand {
  const void* data = nullptr;
  std::int64_t ld = 0;
  bool transposed = false;
  std::int64_t step = 0;  // elements from one matrix of a batch to the next; 0: all use one
};

/// c [m, n] column-major = alpha op(a) [m, k] op(b) [k, n] + beta c, for each of `batch`.
struct Gemm {
  std::int64_t m = 0, n = 0, k = 0;
  GemmOperand a, b;
  void* c = nullptr;
  std::int64_t ldc = 0;
  cudaDataType_t input = CUDA_R_32F, output = CUDA_R_32F;
  cublasComputeType_t compute = CUBLAS_COMPUTE_32F;
  cudaDataType_t scale = CUDA_R_32F;
  double alpha = 1, beta = 0;
  std::int64_t batch = 1, c_step = 0;
};

/// Queues the product; `workspace` of `workspace_bytes` is 256-byte aligned.
void run_gemm(const Stream& stream, const Gemm& gemm, void* workspace, std::int64_t workspace_bytes);

}  // namespace ridge::kernels::device
