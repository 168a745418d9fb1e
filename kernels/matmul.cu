#include "kernels/matmul.h"

#include <type_traits>

#include "kernels/device/gemm.h"
#include "kernels/device/launch.cuh"
#include "kernels/device/vec.cuh"

namespace ridge::kernels {
namespace {

using device::Gemm;
using device::GemmOperand;

template <class T>
constexpr cudaDataType_t kDataType = std::is_same_v<T, double>
                                         ? CUDA_R_64F
                                         : (std::is_same_v<T, float> ? CUDA_R_32F : CUDA_R_16BF);

template <class T>
[[noreturn]] void fail_sparse(const View<T>& v) {
  fail("matmul: strides {} of {} are dense in no dimension", to_string(v.strides), to_string(v.shape));
}

template <class T>
bool dense_rows(const View<T>& v) {
  return v.strides[1] == 1 && (v.dim(0) <= 1 || v.strides[0] >= v.dim(1));
}

// A row-major matrix is the transpose of a column-major one: as the library sees v', it is not transposed.
template <class T>
GemmOperand transposed_operand(const View<const T>& v) {
  if (dense_rows(v)) return {v.data, std::max(v.strides[0], v.dim(1)), false};
  if (v.strides[0] != 1) fail_sparse(v);
  return {v.data, std::max(v.strides[1], v.dim(0)), true};
}

template <class T>
View<T> transpose(const View<T>& v) {
  return {v.data, {v.dim(1), v.dim(0)}, {v.strides[1], v.strides[0]}};
}

// c = beta c where the sum has no terms.
template <class C>
__global__ void scale_matrix(C* c, std::int64_t cols, std::int64_t stride0, std::int64_t stride1,
                             std::int64_t count, double beta) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  C& slot = c[i / cols * stride0 + i % cols * stride1];
  slot = beta == 0 ? C() : device::round_to<C>(device::load(slot) * static_cast<acc_t<C>>(beta));
}

// Row-major c = a b, with dense rows of c, is column-major c' = b' a'.
template <class T, class C>
Gemm gemm_of(const View<const T>& a_MK, const View<const T>& b_KN, const View<C>& c_MN, double alpha,
             double beta) {
  constexpr bool kWide = std::is_same_v<T, double>;
  Gemm gemm;
  gemm.m = c_MN.dim(1);
  gemm.n = c_MN.dim(0);
  gemm.k = a_MK.dim(1);
  gemm.a = transposed_operand(b_KN);
  gemm.b = transposed_operand(a_MK);
  gemm.c = c_MN.data;
  gemm.ldc = std::max(c_MN.strides[0], c_MN.dim(1));
  gemm.input = kDataType<T>;
  gemm.output = kDataType<C>;
  gemm.compute = kWide ? CUBLAS_COMPUTE_64F : CUBLAS_COMPUTE_32F;
  gemm.scale = kWide ? CUDA_R_64F : CUDA_R_32F;
  gemm.alpha = alpha;
  gemm.beta = beta;
  return gemm;
}

// One matrix of a batch.
template <class T>
View<T> matrix(const View<T>& v, std::int64_t p) {
  return {v.data + p * v.strides[0], {v.dim(1), v.dim(2)}, {v.strides[1], v.strides[2]}};
}

}  // namespace

template <class T, class C>
void cuda::matmul(Stream& stream, View<const T> a_MK, View<const T> b_KN, View<C> c_MN, double alpha,
                  double beta, void* workspace) {
  if (c_MN.numel() == 0) return;
  if (a_MK.dim(1) == 0) {
    scale_matrix<C>
        <<<device::grid_for(c_MN.numel(), device::kThreads), device::kThreads, 0, device::native(stream)>>>(
            c_MN.data, c_MN.dim(1), c_MN.strides[0], c_MN.strides[1], c_MN.numel(), beta);
    return;
  }
  if (!dense_rows(c_MN)) {
    if (c_MN.strides[0] != 1) fail_sparse(c_MN);
    return cuda::matmul<T, C>(stream, transpose(b_KN), transpose(a_MK), transpose(c_MN), alpha, beta,
                              workspace);
  }
  device::run_gemm(stream, gemm_of<T, C>(a_MK, b_KN, c_MN, alpha, beta), workspace, kMatmulWorkspace);
}

template <class T>
void cuda::matmul_batched(Stream& stream, View<const T> a_PMK, View<const T> b_KN, View<T> c_PMN,
                          double alpha, double beta, void* workspace) {
  if (c_PMN.numel() == 0) return;
  if (a_PMK.dim(2) == 0 || a_PMK.dim(0) == 1 || !dense_rows(matrix(c_PMN, 0))) {
    for (std::int64_t p = 0; p < a_PMK.dim(0); ++p)
      cuda::matmul<T, T>(stream, matrix(a_PMK, p), b_KN, matrix(c_PMN, p), alpha, beta, workspace);
    return;
  }
  Gemm gemm = gemm_of<T, T>(matrix(a_PMK, 0), b_KN, matrix(c_PMN, 0), alpha, beta);
  gemm.batch = a_PMK.dim(0);
  gemm.b.step = a_PMK.strides[0];
  gemm.c_step = c_PMN.strides[0];
  device::run_gemm(stream, gemm, workspace, kMatmulWorkspace);
}

template void cuda::matmul_batched<float>(Stream&, View<const float>, View<const float>, View<float>, double,
                                          double, void*);
template void cuda::matmul_batched<double>(Stream&, View<const double>, View<const double>, View<double>,
                                           double, double, void*);
template void cuda::matmul_batched<bf16>(Stream&, View<const bf16>, View<const bf16>, View<bf16>, double,
                                         double, void*);

template void cuda::matmul<float, float>(Stream&, View<const float>, View<const float>, View<float>, double,
                                         double, void*);
template void cuda::matmul<double, double>(Stream&, View<const double>, View<const double>, View<double>,
                                           double, double, void*);
template void cuda::matmul<bf16, bf16>(Stream&, View<const bf16>, View<const bf16>, View<bf16>, double,
                                       double, void*);
template void cuda::matmul<bf16, float>(Stream&, View<const bf16>, View<const bf16>, View<float>, double,
                                        double, void*);

}  // namespace ridge::kernels
