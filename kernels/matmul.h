// c = alpha a b + beta c for strided matrices.
#pragma once

#include "core/base/dtype.h"
#include "core/base/launch.h"
#include "core/base/view.h"

namespace ridge::kernels {

/// 2MNK operations; a and b read once, c written once and, with beta, read.
template <class T, class C>
Work matmul_work(const View<const T>& a_MK, const View<const T>& b_KN, bool adds) {
  const double m = static_cast<double>(a_MK.dim(0)), k = static_cast<double>(a_MK.dim(1));
  const double n = static_cast<double>(b_KN.dim(1));
  return {2 * m * n * k, (m * k + k * n) * sizeof(T) + m * n * sizeof(C) * (adds ? 2 : 1)};
}

/// a [M, K], b [K, N], c [M, N]; each with stride 1 in one of its dimensions, so a transpose is a view.
/// Sums are kept in f32 (f64 for double); C is T, or float for bf16 inputs. beta = 0 does not read c.
/// Cut among threads by rows and columns: the bits may depend on the number of threads, never on their
/// timing. Instantiated for <float>, <double>, <bf16>, <bf16, float>.
template <class T, class C = T>
void matmul(Stream& stream, View<const T> a_MK, View<const T> b_KN, View<C> c_MN, double alpha = 1,
            double beta = 0);

/// A product for each of P matrices with one b: c[p] = alpha a[p] b + beta c[p]. a [P, M, K] and c [P, M, N]
/// have dense rows, b as above. On a GPU it is one launch. Instantiated for <float>, <double>, <bf16>.
template <class T>
void matmul_batched(Stream& stream, View<const T> a_PMK, View<const T> b_KN, View<T> c_PMN, double alpha = 1,
                    double beta = 0);

/// What `launch` runs on a GPU (matmul.cu): cuBLASLt with f32 sums (f64 for double), no tf32. The algorithm
/// is the library's first choice for the shape, which is the same from run to run.
namespace cuda {
/// Bytes that a product may use beside its operands: those at `workspace`.
inline constexpr std::int64_t kMatmulWorkspace = std::int64_t{32} << 20;

template <class T, class C>
void matmul(Stream& stream, View<const T> a_MK, View<const T> b_KN, View<C> c_MN, double alpha, double beta,
            void* workspace);
template <class T>
void matmul_batched(Stream& stream, View<const T> a_PMK, View<const T> b_KN, View<T> c_PMN, double alpha,
                    double beta, void* workspace);
}  // namespace cuda

}  // namespace ridge::kernels
