#include "kernels/matmul.h"

#include <cblas.h>

#include <algorithm>
#include <type_traits>
#include <utility>

#include "core/base/memory.h"
#include "core/base/threads.h"
#include "kernels/blas.h"
#include "kernels/gemv.h"

namespace ridge::kernels {
namespace {

constexpr double kSerialFlops = 1 << 20;  // below this one thread is faster

template <class T>
[[noreturn]] void fail_sparse(const View<T>& v) {
  fail("matmul: strides {} of {} are dense in no dimension", to_string(v.strides), to_string(v.shape));
}

// A matrix as BLAS names it: dense rows, or the transpose of such.
template <class T>
struct Operand {
  T* data;
  std::int64_t ld;
  bool transposed;

  explicit Operand(const View<T>& v) {
    const bool rows = v.strides[1] == 1 && (v.dim(0) <= 1 || v.strides[0] >= v.dim(1));
    const bool cols = v.strides[0] == 1 && (v.dim(1) <= 1 || v.strides[1] >= v.dim(0));
    data = v.data;
    transposed = !rows;
    if (!rows && !cols) fail_sparse(v);
    ld = rows ? std::max(v.strides[0], v.dim(1)) : std::max(v.strides[1], v.dim(0));
  }
  CBLAS_TRANSPOSE flag() const { return transposed ? CblasTrans : CblasNoTrans; }
  T* row(std::int64_t i) const { return data + i * (transposed ? 1 : ld); }
  T* col(std::int64_t j) const { return data + j * (transposed ? ld : 1); }
};

struct Extent {
  std::int64_t m, n, k;
};

void blas(Extent e, float alpha, Operand<const float> a, Operand<const float> b, float beta, float* c,
          std::int64_t ldc) {
  cblas_sgemm(CblasRowMajor, a.flag(), b.flag(), static_cast<blasint>(e.m), static_cast<blasint>(e.n),
              static_cast<blasint>(e.k), alpha, a.data, static_cast<blasint>(a.ld), b.data,
              static_cast<blasint>(b.ld), beta, c, static_cast<blasint>(ldc));
}

void blas(Extent e, double alpha, Operand<const double> a, Operand<const double> b, double beta, double* c,
          std::int64_t ldc) {
  cblas_dgemm(CblasRowMajor, a.flag(), b.flag(), static_cast<blasint>(e.m), static_cast<blasint>(e.n),
              static_cast<blasint>(e.k), alpha, a.data, static_cast<blasint>(a.ld), b.data,
              static_cast<blasint>(b.ld), beta, c, static_cast<blasint>(ldc));
}

// How c is cut among threads. Each piece packs its rows of a and its columns of b anew, so pieces are near
// square.
struct Grid {
  std::int64_t rows, cols;
};

Grid choose_grid(Extent e) {
  const std::int64_t threads = thread_count();
  Grid best{threads, 1};
  double least = 1e300;
  for (std::int64_t rows = 1; rows <= threads; ++rows) {
    if (threads % rows != 0) continue;
    const std::int64_t cols = threads / rows;
    const double packed = static_cast<double>(cols * e.m) + static_cast<double>(rows * e.n);
    if (packed < least) best = {rows, cols};
    least = std::min(least, packed);
  }
  return best;
}

// The p-th of `pieces` parts of an extent; borders are multiples of 16.
std::pair<std::int64_t, std::int64_t> part_of(std::int64_t extent, std::int64_t pieces, std::int64_t p) {
  const std::int64_t size = ((extent + pieces - 1) / pieces + 15) / 16 * 16;
  return {std::min(extent, p * size), std::min(extent, (p + 1) * size)};
}

template <class T>
void gemm(Extent e, T alpha, Operand<const T> a, Operand<const T> b, T beta, T* c, std::int64_t ldc) {
  const double flops = 2.0 * static_cast<double>(e.m) * static_cast<double>(e.n) * static_cast<double>(e.k);
  if (flops < kSerialFlops) return blas(e, alpha, a, b, beta, c, ldc);
  const Grid grid = choose_grid(e);
  parallel_for(grid.rows * grid.cols, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t piece = begin; piece < end; ++piece) {
      const auto [m0, m1] = part_of(e.m, grid.rows, piece / grid.cols);
      const auto [n0, n1] = part_of(e.n, grid.cols, piece % grid.cols);
      if (m0 == m1 || n0 == n1) continue;
      Operand<const T> pa = a, pb = b;
      pa.data = a.row(m0);
      pb.data = b.col(n0);
      blas({m1 - m0, n1 - n0, e.k}, alpha, pa, pb, beta, c + m0 * ldc + n0, ldc);
    }
  });
}

template <class T>
void scale_matrix(const View<T>& c, T beta) {
  for (std::int64_t i = 0; i < c.dim(0); ++i) {
    for (std::int64_t j = 0; j < c.dim(1); ++j) c(i, j) = beta == 0 ? T(0) : c(i, j) * beta;
  }
}

// Decoding's product: x [m, K] with dense rows times w [N, K] transposed.
template <class T>
bool is_gemv(const View<const T>& a, const View<const T>& b, double alpha, double beta) {
  const bool row_vectors =
      a.dim(0) <= kGemvRows && a.strides[1] == 1 && (a.dim(0) == 1 || a.strides[0] == a.dim(1));
  return row_vectors && b.strides[0] == 1 && b.dim(1) > 1 && b.strides[1] >= b.dim(0) && alpha == 1 &&
         beta == 0;
}

template <class T>
void native(View<const T> a, View<const T> b, View<T> c, double alpha, double beta) {
  const Extent e{a.dim(0), b.dim(1), a.dim(1)};
  if (e.m == 0 || e.n == 0) return;
  if (e.k == 0) return scale_matrix(c, static_cast<T>(beta));
  if constexpr (std::is_same_v<T, float>) {
    if (is_gemv(a, b, alpha, beta) && c.strides[1] == 1) {
      return gemv_rows<float>(a.data, e.m, e.k, b.data, b.strides[1], e.n, c.data, c.strides[0], nullptr);
    }
  }
  const Operand<T> out(c);
  if (out.transposed) {  // c' = b' a'
    const View<const T> at(a.data, {a.dim(1), a.dim(0)}, {a.strides[1], a.strides[0]});
    const View<const T> bt(b.data, {b.dim(1), b.dim(0)}, {b.strides[1], b.strides[0]});
    gemm<T>({e.n, e.m, e.k}, static_cast<T>(alpha), Operand<const T>(bt), Operand<const T>(at),
            static_cast<T>(beta), c.data, out.ld);
    return;
  }
  gemm<T>(e, static_cast<T>(alpha), Operand<const T>(a), Operand<const T>(b), static_cast<T>(beta), c.data,
          out.ld);
}

// f32 scratch in the memory order of the bf16 matrix, so that its transposition stands.
struct Widened {
  View<const bf16> source;
  View<float> wide;
  Storage memory;

  explicit Widened(const View<const bf16>& v, Device device)
      : source(v), memory(device, v.numel() * static_cast<std::int64_t>(sizeof(float))) {
    const Shape& s = v.shape;
    const bool rows = v.strides[1] == 1;
    if (!rows && v.strides[0] != 1) fail_sparse(v);
    wide = View<float>(static_cast<float*>(memory.data()), s, rows ? Strides{s[1], 1} : Strides{1, s[0]});
  }

  void fill() const {
    const bool rows = source.strides[1] == 1;
    const std::int64_t outer = source.dim(rows ? 0 : 1), inner = source.dim(rows ? 1 : 0);
    const std::int64_t stride = source.strides[rows ? 0 : 1];
    parallel_for(outer, 1 + (1 << 15) / std::max<std::int64_t>(inner, 1),
                 [&](std::int64_t begin, std::int64_t end) {
                   for (std::int64_t i = begin; i < end; ++i) {
                     const bf16* __restrict from = source.data + i * stride;
                     float* __restrict to = wide.data + i * inner;
                     for (std::int64_t j = 0; j < inner; ++j) to[j] = static_cast<float>(from[j]);
                   }
                 });
  }
};

template <class C>
void store(const View<const float>& product, const View<C>& c, float beta) {
  parallel_for(c.dim(0), 1 + (1 << 15) / std::max<std::int64_t>(c.dim(1), 1),
               [&](std::int64_t begin, std::int64_t end) {
                 for (std::int64_t i = begin; i < end; ++i) {
                   for (std::int64_t j = 0; j < c.dim(1); ++j) {
                     const float before = beta == 0 ? 0.0f : beta * static_cast<float>(c(i, j));
                     c(i, j) = static_cast<C>(before + product(i, j));
                   }
                 }
               });
}

template <class C>
void few_rows(Stream& stream, Work work, View<const bf16> a, View<const bf16> b, View<C> c) {
  const PurposeScope purpose(Purpose::workspace);
  const Widened x(a, stream.device());
  Storage product(stream.device(), c.numel() * static_cast<std::int64_t>(sizeof(float)));
  Storage arranged(stream.device(), a.numel() * static_cast<std::int64_t>(sizeof(float)));
  const View<float> y(static_cast<float*>(product.data()), c.shape);
  launch(stream, "matmul", work, [&] {
    x.fill();
    gemv_rows<bf16>(x.wide.data, a.dim(0), a.dim(1), b.data, b.strides[1], b.dim(1), y.data, c.dim(1),
                    static_cast<float*>(arranged.data()));
    store<C>(y, c, 0);
  });
}

// bf16 inputs are widened as a whole: the CPU's product runs in f32.
template <class C>
void widened(Stream& stream, Work work, View<const bf16> a, View<const bf16> b, View<C> c, double alpha,
             double beta) {
  if (is_gemv(a, b, alpha, beta) && a.numel() > 0) return few_rows(stream, work, a, b, c);
  const PurposeScope purpose(Purpose::workspace);
  const Widened wa(a, stream.device()), wb(b, stream.device());
  const bool direct = std::is_same_v<C, float>;
  Storage product(stream.device(), direct ? 0 : c.numel() * static_cast<std::int64_t>(sizeof(float)));
  launch(stream, "matmul", work, [&] {
    wa.fill();
    wb.fill();
    if constexpr (std::is_same_v<C, float>) {
      native<float>(wa.wide, wb.wide, c, alpha, beta);
    } else {
      const View<float> y(static_cast<float*>(product.data()), c.shape);
      native<float>(wa.wide, wb.wide, y, alpha, 0);
      store<C>(y, c, static_cast<float>(beta));
    }
  });
}

}  // namespace

template <class T, class C>
void matmul(Stream& stream, View<const T> a_MK, View<const T> b_KN, View<C> c_MN, double alpha, double beta) {
  const bool fits = a_MK.ndim() == 2 && b_KN.ndim() == 2 && c_MN.ndim() == 2 && a_MK.dim(1) == b_KN.dim(0) &&
                    c_MN.dim(0) == a_MK.dim(0) && c_MN.dim(1) == b_KN.dim(1);
  if (!fits) {
    fail("matmul: {} times {} into {}", to_string(a_MK.shape), to_string(b_KN.shape), to_string(c_MN.shape));
  }
  const Work work = matmul_work<T, C>(a_MK, b_KN, beta != 0);
  prepare_blas();
  if (planned_device(stream.device()) == Device::cuda) {
    const PurposeScope purpose(Purpose::workspace);
    const Storage workspace(stream.device(), cuda::kMatmulWorkspace);
    const auto on_cuda = [&] { cuda::matmul<T, C>(stream, a_MK, b_KN, c_MN, alpha, beta, workspace.data()); };
    launch(
        stream, "matmul", work, [] {}, on_cuda);
  } else if constexpr (std::is_same_v<T, bf16>) {
    widened<C>(stream, work, a_MK, b_KN, c_MN, alpha, beta);
  } else {
    launch(stream, "matmul", work, [&] { native<T>(a_MK, b_KN, c_MN, alpha, beta); });
  }
}

template <class T>
void matmul_batched(Stream& stream, View<const T> a_PMK, View<const T> b_KN, View<T> c_PMN, double alpha,
                    double beta) {
  const std::int64_t P = a_PMK.dim(0), M = a_PMK.dim(1), K = a_PMK.dim(2), N = b_KN.dim(1);
  if (b_KN.dim(0) != K || !(c_PMN.shape == Shape{P, M, N}) || !a_PMK.rows_dense() || !c_PMN.rows_dense()) {
    fail("matmul_batched: {} times {} into {}", to_string(a_PMK.shape), to_string(b_KN.shape),
         to_string(c_PMN.shape));
  }
  if (planned_device(stream.device()) != Device::cuda) {
    for (std::int64_t p = 0; p < P; ++p) {
      const View<const T> a(a_PMK.data + p * a_PMK.strides[0], {M, K}, {a_PMK.strides[1], a_PMK.strides[2]});
      const View<T> c(c_PMN.data + p * c_PMN.strides[0], {M, N}, {c_PMN.strides[1], c_PMN.strides[2]});
      matmul<T>(stream, a, b_KN, c, alpha, beta);
    }
    return;
  }
  const Work work{2 * static_cast<double>(P * M) * static_cast<double>(N * K),
                  a_PMK.bytes() + b_KN.bytes() + c_PMN.bytes() * (beta != 0 ? 2 : 1)};
  const PurposeScope purpose(Purpose::workspace);
  const Storage workspace(stream.device(), cuda::kMatmulWorkspace);
  const auto on_cuda = [&] {
    cuda::matmul_batched<T>(stream, a_PMK, b_KN, c_PMN, alpha, beta, workspace.data());
  };
  launch(
      stream, "matmul_batched", work, [] {}, on_cuda);
}

template void matmul_batched<float>(Stream&, View<const float>, View<const float>, View<float>, double,
                                    double);
template void matmul_batched<double>(Stream&, View<const double>, View<const double>, View<double>, double,
                                     double);
template void matmul_batched<bf16>(Stream&, View<const bf16>, View<const bf16>, View<bf16>, double, double);

template void matmul<float, float>(Stream&, View<const float>, View<const float>, View<float>, double,
                                   double);
template void matmul<double, double>(Stream&, View<const double>, View<const double>, View<double>, double,
                                     double);
template void matmul<bf16, bf16>(Stream&, View<const bf16>, View<const bf16>, View<bf16>, double, double);
template void matmul<bf16, float>(Stream&, View<const bf16>, View<const bf16>, View<float>, double, double);

}  // namespace ridge::kernels
