// cuBLASLt as the program uses it: plain products, batched by strides, with the factors on the host.
#pragma GCC visibility push(default)
#include <cublasLt.h>
#pragma GCC visibility pop

#include <cstring>
#include <memory>
#include <new>
#include <string>

#include "tests/emulated_gpu/cublas_product.h"
#include "tests/emulated_gpu/runtime.h"
#include "tests/emulated_gpu/runtime_memory.h"

namespace ridge::emulated {
namespace {

// What is kept behind the library's opaque structures, which it makes itself.
struct Operation {
  cublasComputeType_t compute = CUBLAS_COMPUTE_32F;
  cudaDataType_t scale = CUDA_R_32F;
  cublasOperation_t a = CUBLAS_OP_N, b = CUBLAS_OP_N;
};

Matrix& matrix_of(cublasLtMatrixLayout_t layout) { return *reinterpret_cast<Matrix*>(layout); }
Operation& operation_of(cublasLtMatmulDesc_t desc) { return *reinterpret_cast<Operation*>(desc); }

template <class T>
cublasStatus_t set(T& value, const void* from, std::size_t bytes) {
  if (bytes != sizeof(T)) return CUBLAS_STATUS_INVALID_VALUE;
  std::memcpy(&value, from, sizeof(T));
  return CUBLAS_STATUS_SUCCESS;
}

// An attribute that changes nothing here unless it asks for more than the plain product.
template <class T>
cublasStatus_t only(T plain, const void* from, std::size_t bytes) {
  T value{};
  const cublasStatus_t status = set(value, from, bytes);
  if (status != CUBLAS_STATUS_SUCCESS) return status;
  return value == plain ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}

bool dense(const Matrix& m) {
  return m.rows > 0 && m.cols > 0 && m.batch > 0 && m.ld >= (m.by_rows ? m.cols : m.rows);
}

// The sizes must fit and the types must be ones that the library multiplies.
cublasStatus_t check_product(const Product& q, const Operation& operation) {
  for (const Matrix* m : {&q.a, &q.b, &q.c, &q.d}) {
    if (width_of(m->type) == 0) return CUBLAS_STATUS_NOT_SUPPORTED;
    if (!dense(*m) || m->batch != q.d.batch) return CUBLAS_STATUS_INVALID_VALUE;
  }
  const auto shape = [](const Matrix& m, bool transposed) {
    return transposed ? std::pair(m.cols, m.rows) : std::pair(m.rows, m.cols);
  };
  const auto [m, k] = shape(q.a, q.a_transposed);
  const auto [k_too, n] = shape(q.b, q.b_transposed);
  if (k != k_too || std::pair(m, n) != shape(q.d, false) || std::pair(m, n) != shape(q.c, false))
    return CUBLAS_STATUS_INVALID_VALUE;
  const cudaDataType_t in = q.a.type, out = q.d.type;
  const bool wide = in == CUDA_R_64F;
  const bool types =
      q.b.type == in && q.c.type == out && (wide ? out == CUDA_R_64F : out == CUDA_R_32F || out == in);
  const bool sums = operation.compute == (wide ? CUBLAS_COMPUTE_64F : CUBLAS_COMPUTE_32F) &&
                    operation.scale == (wide ? CUDA_R_64F : CUDA_R_32F);
  return types && sums ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}

Product product_of(cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                   cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d) {
  Product q;
  q.a = matrix_of(a);
  q.b = matrix_of(b);
  q.c = matrix_of(c);
  q.d = matrix_of(d);
  q.a_transposed = operation_of(desc).a != CUBLAS_OP_N;
  q.b_transposed = operation_of(desc).b != CUBLAS_OP_N;
  return q;
}

double factor(const void* from, cudaDataType_t type) {
  return type == CUDA_R_64F ? *static_cast<const double*>(from) : *static_cast<const float*>(from);
}

void check_operand(const Matrix& m, const void* data, const char* name) {
  const auto bytes = static_cast<std::size_t>(extent_of(m)) * width_of(m.type);
  check_visible(data, bytes, std::string("cublasLtMatmul's ") + name);
}

}  // namespace
}  // namespace ridge::emulated

using namespace ridge::emulated;

extern "C" {

cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) {
  static char place = 0;
  *handle = reinterpret_cast<cublasLtHandle_t>(&place);
  return device_state() == cudaSuccess ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_INITIALIZED;
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t) { return CUBLAS_STATUS_SUCCESS; }
size_t cublasLtGetVersion() { return 130000; }

const char* cublasLtGetStatusString(cublasStatus_t status) {
  if (status == CUBLAS_STATUS_SUCCESS) return "CUBLAS_STATUS_SUCCESS";
  if (status == CUBLAS_STATUS_INVALID_VALUE) return "CUBLAS_STATUS_INVALID_VALUE";
  if (status == CUBLAS_STATUS_NOT_SUPPORTED) return "CUBLAS_STATUS_NOT_SUPPORTED";
  if (status == CUBLAS_STATUS_EXECUTION_FAILED) return "CUBLAS_STATUS_EXECUTION_FAILED";
  return "another CUBLAS_STATUS";
}
const char* cublasLtGetStatusName(cublasStatus_t status) { return cublasLtGetStatusString(status); }

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* layout, cudaDataType type, uint64_t rows,
                                          uint64_t cols, int64_t ld) {
  auto* matrix = new Matrix;
  matrix->type = type;
  matrix->rows = static_cast<std::int64_t>(rows);
  matrix->cols = static_cast<std::int64_t>(cols);
  matrix->ld = ld;
  *layout = reinterpret_cast<cublasLtMatrixLayout_t>(matrix);
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
  delete reinterpret_cast<Matrix*>(layout);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t layout,
                                                cublasLtMatrixLayoutAttribute_t attribute, const void* from,
                                                size_t bytes) {
  Matrix& m = matrix_of(layout);
  if (attribute == CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT) return set(m.batch, from, bytes);
  if (attribute == CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET) return set(m.step, from, bytes);
  if (attribute == CUBLASLT_MATRIX_LAYOUT_LD) return set(m.ld, from, bytes);
  if (attribute != CUBLASLT_MATRIX_LAYOUT_ORDER) return CUBLAS_STATUS_NOT_SUPPORTED;
  std::int32_t order = 0;
  const cublasStatus_t status = set(order, from, bytes);
  if (status != CUBLAS_STATUS_SUCCESS) return status;
  if (order != CUBLASLT_ORDER_COL && order != CUBLASLT_ORDER_ROW) return CUBLAS_STATUS_NOT_SUPPORTED;
  m.by_rows = order == CUBLASLT_ORDER_ROW;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* desc, cublasComputeType_t compute,
                                        cudaDataType_t scale) {
  *desc = reinterpret_cast<cublasLtMatmulDesc_t>(new Operation{compute, scale});
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t desc) {
  delete reinterpret_cast<Operation*>(desc);
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t desc,
                                              cublasLtMatmulDescAttributes_t attribute, const void* from,
                                              size_t bytes) {
  Operation& operation = operation_of(desc);
  if (attribute == CUBLASLT_MATMUL_DESC_TRANSA) return set(operation.a, from, bytes);
  if (attribute == CUBLASLT_MATMUL_DESC_TRANSB) return set(operation.b, from, bytes);
  if (attribute == CUBLASLT_MATMUL_DESC_POINTER_MODE)
    return only<std::int32_t>(CUBLASLT_POINTER_MODE_HOST, from, bytes);
  if (attribute == CUBLASLT_MATMUL_DESC_EPILOGUE)
    return only<std::uint32_t>(CUBLASLT_EPILOGUE_DEFAULT, from, bytes);
  return CUBLAS_STATUS_NOT_SUPPORTED;
}

// One way to multiply has no use for preferences.
cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* preference) {
  *preference = new cublasLtMatmulPreferenceOpaque_t{};
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
  delete preference;
  return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t,
                                                    cublasLtMatmulPreferenceAttributes_t, const void*,
                                                    size_t) {
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t desc,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t, int most,
                                              cublasLtMatmulHeuristicResult_t* results, int* found) {
  *found = 0;
  if (most <= 0) return CUBLAS_STATUS_INVALID_VALUE;
  const cublasStatus_t status = check_product(product_of(desc, a, b, c, d), operation_of(desc));
  if (status != CUBLAS_STATUS_SUCCESS) return status;
  results[0] = {};
  results[0].algo.data[0] = 1;
  results[0].state = CUBLAS_STATUS_SUCCESS;
  results[0].wavesCount = 1;
  *found = 1;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t desc, const void* alpha, const void* a,
                              cublasLtMatrixLayout_t a_layout, const void* b, cublasLtMatrixLayout_t b_layout,
                              const void* beta, const void* c, cublasLtMatrixLayout_t c_layout, void* d,
                              cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t*, void*, size_t,
                              cudaStream_t stream) {
  Product q = product_of(desc, a_layout, b_layout, c_layout, d_layout);
  const cublasStatus_t status = check_product(q, operation_of(desc));
  if (status != CUBLAS_STATUS_SUCCESS) return status;
  q.alpha = factor(alpha, operation_of(desc).scale);
  q.beta = factor(beta, operation_of(desc).scale);
  const cudaError_t error = enqueue(stream, [=] {
    check_operand(q.a, a, "A");
    check_operand(q.b, b, "B");
    if (q.beta != 0) check_operand(q.c, c, "C");
    check_operand(q.d, d, "D");
    multiply(q, a, b, c, d);
  });
  return error == cudaSuccess ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_EXECUTION_FAILED;
}

}  // extern "C"
