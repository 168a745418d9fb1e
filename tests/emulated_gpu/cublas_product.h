// Products of column-major matrices as cuBLASLt is asked for them, on the host.
#pragma once

#include <cublasLt.h>

#include <cstddef>
#include <cstdint>

namespace ridge::emulated {

struct Matrix {
  cudaDataType_t type = CUDA_R_32F;
  std::int64_t rows = 0, cols = 0, ld = 0;
  bool by_rows = false;   // ld is from one row to the next
  std::int64_t step = 0;  // elements from one matrix of a batch to the next
  std::int32_t batch = 1;
};

struct Product {
  bool wide = false;  // summed in f64, else in f32
  Matrix a, b, c, d;
  bool a_transposed = false, b_transposed = false;
  double alpha = 1, beta = 0;
};

/// Bytes of an element; 0: a type that is not known here.
std::size_t width_of(cudaDataType_t type);
/// Elements from the first to behind the last, of all of a batch.
std::int64_t extent_of(const Matrix& matrix);
/// d = alpha op(a) op(b) + beta c for each of a batch. Sums run in the order of k, whatever the other sizes.
void multiply(const Product& product, const void* a, const void* b, const void* c, void* d);

}  // namespace ridge::emulated
