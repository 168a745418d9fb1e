#include "kernels/attention_merge.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/base/launch.h"
#include "core/base/threads.h"
#include "kernels/element.h"
#include "kernels/strided.h"

namespace ridge::kernels {
namespace {

constexpr std::int64_t kGrainElements = 16384;  // elements a chunk

// The shares of two log-sum-exps in their sum, and its logarithm.
template <class C>
struct Shares {
  C of_a = 1, of_b = 0, lse;

  Shares(C lse_a, C lse_b) : lse(std::max(lse_a, lse_b)) {
    if (lse == -std::numeric_limits<C>::infinity()) return;
    const C a = std::exp(lse_a - lse), b = std::exp(lse_b - lse), sum = a + b;
    of_a = a / sum;
    of_b = b / sum;
    lse += std::log(sum);
  }
};

// Not restrict: y may be a or b.
template <class A, class B, class Y, class C>
void merge_row(const A* a, const B* b, Y* y, std::int64_t head_dim, const Shares<C>& shares) {
#pragma omp simd
  for (std::int64_t d = 0; d < head_dim; ++d)
    store(y[d], load(a[d]) * shares.of_a + load(b[d]) * shares.of_b);
}

template <class A, class B, class Y, class C>
void check_parts(const View<const A>& a, const View<const C>& lse_a, const View<const B>& b,
                 const View<const C>& lse_b, const View<Y>& y, const View<C>& lse_y) {
  check(b.ndim() == 4 && a.shape == b.shape && y.shape == b.shape,
        "merge_attention: parts and result are [B, T, H, D] alike");
  check(a.rows_dense() && b.rows_dense() && y.rows_dense(), "merge_attention: the last dim must be dense");
  const Shape rows{b.dim(0), b.dim(2), b.dim(1)};
  check(lse_a.shape == rows && lse_b.shape == rows && lse_y.shape == rows,
        "merge_attention: log-sum-exps are [B, H, T]");
}

}  // namespace

template <class A, class B, class Y>
void merge_attention(Stream& stream, View<const A> a, View<const acc_t<B>> lse_a, View<const B> b,
                     View<const acc_t<B>> lse_b, View<Y> y, View<acc_t<B>> lse_y) {
  check_parts(a, lse_a, b, lse_b, y, lse_y);
  const std::int64_t T = b.dim(1), H = b.dim(2), D = b.dim(3);
  const auto on_cpu = [&] {
    const std::int64_t grain = kGrainElements / std::max<std::int64_t>(1, D);
    parallel_for(b.dim(0) * T * H, grain, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t row = begin; row < end; ++row) {
        const std::int64_t h = row % H, t = row / H % T, i = row / H / T;
        const Shares<acc_t<B>> shares(lse_a(i, h, t), lse_b(i, h, t));
        merge_row(&a(i, t, h, 0), &b(i, t, h, 0), &y(i, t, h, 0), D, shares);
        lse_y(i, h, t) = shares.lse;
      }
    });
  };
  // 2 products and a sum an element.
  const Work work{3 * static_cast<double>(b.numel()),
                  a.bytes() + b.bytes() + y.bytes() + lse_a.bytes() + lse_b.bytes() + lse_y.bytes()};
  launch(stream, "merge_attention", work, on_cpu,
         [&] { cuda::merge_attention<A, B, Y>(stream, a, lse_a, b, lse_b, y, lse_y); });
}

template <class A, class B, class Y>
void add_parts(Stream& stream, View<const A> a, View<const B> b, View<Y> y) {
  check(a.shape == y.shape && b.shape == y.shape, "add_parts: operands of one shape");
  launch(
      stream, "add_parts", Work{static_cast<double>(y.numel()), a.bytes() + b.bytes() + y.bytes()},
      [&] { map_elements([](const A& p, const B& q, Y& sum) { store(sum, load(p) + load(q)); }, a, b, y); },
      [&] { cuda::add_parts<A, B, Y>(stream, a, b, y); });
}

template void merge_attention(Stream&, View<const float>, View<const float>, View<const float>,
                              View<const float>, View<float>, View<float>);
template void merge_attention(Stream&, View<const double>, View<const double>, View<const double>,
                              View<const double>, View<double>, View<double>);
template void merge_attention(Stream&, View<const bf16>, View<const float>, View<const bf16>,
                              View<const float>, View<bf16>, View<float>);
template void merge_attention(Stream&, View<const bf16>, View<const float>, View<const bf16>,
                              View<const float>, View<float>, View<float>);
template void merge_attention(Stream&, View<const float>, View<const float>, View<const bf16>,
                              View<const float>, View<bf16>, View<float>);
template void merge_attention(Stream&, View<const float>, View<const float>, View<const bf16>,
                              View<const float>, View<float>, View<float>);

template void add_parts(Stream&, View<const float>, View<const float>, View<float>);
template void add_parts(Stream&, View<const double>, View<const double>, View<double>);
template void add_parts(Stream&, View<const bf16>, View<const bf16>, View<bf16>);
template void add_parts(Stream&, View<const bf16>, View<const bf16>, View<float>);
template void add_parts(Stream&, View<const float>, View<const bf16>, View<bf16>);
template void add_parts(Stream&, View<const float>, View<const bf16>, View<float>);

}  // namespace ridge::kernels
