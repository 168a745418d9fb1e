#include "kernels/reduce.h"

#include <algorithm>
#include <bit>

#include <cmath>
#include <limits>
#include <vector>

#include "core/base/launch.h"
#include "core/base/threads.h"
#include "kernels/element.h"
#include "kernels/strided.h"

namespace ridge::kernels {
namespace {

constexpr std::int64_t kTask = 16384;  // elements of one task at the least

/// All dimensions but the last.
template <class T>
Nest outer_nest(const View<T>& view) {
  Nest nest;
  for (int d = 0; d + 1 < view.ndim(); ++d) nest.push(view.shape[d], view.strides[d]);
  return nest;
}

template <class T>
acc_t<T> row_max(const T* x, std::int64_t step, std::int64_t n) {
  using A = acc_t<T>;
  constexpr A kLeast = -std::numeric_limits<A>::infinity();
  A top = kLeast;
  int nans = 0, above = 0;  // above: clang's lanes begin at the least finite value, which no element may have
#pragma omp simd reduction(max : top) reduction(| : nans, above)
  for (std::int64_t i = 0; i < n; ++i) {
    const A v = load(x[i * step]);
    top = v > top ? v : top;
    nans |= v != v;
    above |= v > kLeast;
  }
  if (nans) return std::numeric_limits<A>::quiet_NaN();
  return above ? top : kLeast;
}

template <class T>
std::int64_t row_argmax(const T* x, std::int64_t step, std::int64_t n) {
  const acc_t<T> top = row_max(x, step, n);
  for (std::int64_t i = 0; i < n; ++i) {
    const acc_t<T> v = load(x[i * step]);
    if (v == top || v != v) return i;
  }
  return 0;
}

std::int64_t rows_per_task(std::int64_t length) { return std::max<std::int64_t>(1, kTask / length); }

inline std::uint32_t bits_of(float x) { return std::bit_cast<std::uint32_t>(x); }
inline std::uint64_t bits_of(double x) { return std::bit_cast<std::uint64_t>(x); }
inline std::uint16_t bits_of(bf16 x) { return x.bits; }

/// Infinities and NaN are the elements whose exponent is all ones.
template <class T>
bool any_non_finite(const T* x, std::int64_t step, std::int64_t n) {
  using Bits = decltype(bits_of(T()));
  const Bits exponent = bits_of(T(std::numeric_limits<float>::infinity()));
  Bits greatest = 0;
#pragma omp simd reduction(max : greatest)
  for (std::int64_t i = 0; i < n; ++i) {
    const Bits e = bits_of(x[i * step]) & exponent;
    greatest = e > greatest ? e : greatest;
  }
  return greatest == exponent;
}

template <class T>
double span_sum_of_squares(const T* x, std::int64_t step, std::int64_t n) {
  return sum_terms<double>(n, [x, step](std::int64_t i) {
    const auto v = static_cast<double>(load(x[i * step]));
    return v * v;
  });
}

template <class T>
double squares_on_cpu(View<const T> x) {
  const auto walk = walk_over(x);
  std::vector<double> partial(static_cast<std::size_t>(walk.chunks()));
  parallel_for(walk.chunks(), 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t chunk = begin; chunk < end; ++chunk) {
      double& into = partial[static_cast<std::size_t>(chunk)];
      walk.visit_chunk(chunk, [&](const Span<1>& span) {
        const T* row = x.data + span.offset[0];
        into += walk.dense() ? span_sum_of_squares(row, 1, span.count)
                             : span_sum_of_squares(row, walk.step(0), span.count);
      });
    }
  });
  double sum = 0;
  for (const double p : partial) sum += p;
  return sum;
}

constexpr std::int64_t kNone = std::numeric_limits<std::int64_t>::max();

template <class T>
std::int64_t non_finite_on_cpu(View<const T> x) {
  const auto walk = walk_over(x);
  std::vector<std::int64_t> first(static_cast<std::size_t>(walk.chunks()), kNone);
  parallel_for(walk.chunks(), 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t chunk = begin; chunk < end; ++chunk) {
      std::int64_t& at = first[static_cast<std::size_t>(chunk)];
      walk.visit_chunk(chunk, [&](const Span<1>& span) {
        const T* row = x.data + span.offset[0];
        const std::int64_t step = walk.step(0);
        if (at != kNone) return;
        if (!(step == 1 ? any_non_finite(row, 1, span.count) : any_non_finite(row, step, span.count))) return;
        std::int64_t i = 0;
        while (std::isfinite(load(row[i * step]))) ++i;
        at = span.first + i;
      });
    }
  });
  const auto least = std::min_element(first.begin(), first.end());
  return least == first.end() || *least == kNone ? -1 : *least;
}

}  // namespace

template <class T>
void max_last(Stream& stream, View<const T> x, View<T> y) {
  Shape one_each = x.shape;
  one_each[-1] = 1;
  check(y.shape == one_each && x.shape[-1] >= 1, "max_last: [..., C] to [..., 1], C at least 1");
  const Nest from = outer_nest(x), to = outer_nest(y);
  const std::int64_t length = x.shape[-1], step = x.strides[-1];
  const auto rows = [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) {
      store(y.data[to.offset(r)], row_max(x.data + from.offset(r), step, length));
    }
  };
  launch(
      stream, "max_last", Work{static_cast<double>(x.numel()), distinct_bytes(x) + y.bytes()},
      [&] { parallel_for(from.count, rows_per_task(length), rows); },
      [&] { cuda::max_last<T>(stream, x, y); });
}

template <class T>
void argmax_last(Stream& stream, View<const T> x_RC, View<std::int32_t> index_R) {
  check(x_RC.ndim() == 2 && index_R.shape == Shape{x_RC.dim(0)} && x_RC.dim(1) >= 1,
        "argmax_last: [R, C] to [R]");
  const Work work{static_cast<double>(x_RC.numel()), x_RC.bytes() + index_R.bytes()};
  const std::int64_t length = x_RC.dim(1), step = x_RC.strides[1];
  const auto rows = [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t r = begin; r < end; ++r) {
      index_R(r) = static_cast<std::int32_t>(row_argmax(&x_RC(r), step, length));
    }
  };
  launch(
      stream, "argmax_last", work, [&] { parallel_for(x_RC.dim(0), rows_per_task(length), rows); },
      [&] { cuda::argmax_last<T>(stream, x_RC, index_R); });
}

template <class T>
void add_sum_of_squares(Stream& stream, View<const T> x, View<double> sum) {
  check(sum.numel() == 1, "add_sum_of_squares: one sum");
  const Work work{2 * static_cast<double>(x.numel()), distinct_bytes(x) + 2 * sum.bytes()};
  launch(
      stream, "add_sum_of_squares", work, [&] { *sum.data += squares_on_cpu(x); },
      [&] { cuda::add_sum_of_squares<T>(stream, x, sum); });
}

template <class T>
std::int64_t first_non_finite(Stream& stream, View<const T> x) {
  std::int64_t found = -1;
  launch(
      stream, "first_non_finite", Work{static_cast<double>(x.numel()), distinct_bytes(x)},
      [&] { found = non_finite_on_cpu(x); }, [&] { found = cuda::first_non_finite<T>(stream, x); });
  return found;
}

template void max_last<float>(Stream&, View<const float>, View<float>);
template void argmax_last<float>(Stream&, View<const float>, View<std::int32_t>);
template void add_sum_of_squares<float>(Stream&, View<const float>, View<double>);
template std::int64_t first_non_finite<float>(Stream&, View<const float>);

template void max_last<double>(Stream&, View<const double>, View<double>);
template void argmax_last<double>(Stream&, View<const double>, View<std::int32_t>);
template void add_sum_of_squares<double>(Stream&, View<const double>, View<double>);
template std::int64_t first_non_finite<double>(Stream&, View<const double>);

template void max_last<bf16>(Stream&, View<const bf16>, View<bf16>);
template void argmax_last<bf16>(Stream&, View<const bf16>, View<std::int32_t>);
template void add_sum_of_squares<bf16>(Stream&, View<const bf16>, View<double>);
template std::int64_t first_non_finite<bf16>(Stream&, View<const bf16>);

}  // namespace ridge::kernels
