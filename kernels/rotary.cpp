// B batch, T tokens, H heads, D head dim, P rows of the tables.
#include "kernels/rotary.h"

#include <algorithm>

#include "core/base/dtype.h"
#include "core/base/launch.h"
#include "core/base/threads.h"
#include "kernels/element.h"

namespace ridge::kernels {
namespace {

constexpr std::int64_t kGrainElements = 16384;  // elements a chunk

template <class T>
void check_shapes(const View<const T>& x, const View<const float>& cos, const View<const float>& sin,
                  const View<const std::int32_t>& positions, const View<T>& y) {
  check(x.ndim() == 4 && y.shape == x.shape, "rotary: x and y are [B, T, H, D] alike");
  check(x.rows_dense() && y.rows_dense(), "rotary: the last dim of x and y must be dense");
  check(x.dim(3) % 2 == 0, "rotary: an even head dim");
  check(cos.ndim() == 2 && cos.shape == sin.shape && 2 * cos.dim(1) == x.dim(3),
        "rotary: tables are [P, D/2]");
  check(cos.rows_dense() && sin.rows_dense(), "rotary: the last dim of the tables must be dense");
  if (positions.ndim() == 0) {
    check(x.dim(1) <= cos.dim(0), "rotary: a table row for every token");
  } else {
    check(positions.shape == Shape({x.dim(0), x.dim(1)}), "rotary: positions are [B, T]");
  }
}

// x and y may be the same row: each pair is read before it is written, and no pair touches another.
template <class T>
void rotate_row(const T* x, const float* __restrict cos, const float* __restrict sin, T* y, std::int64_t half,
                float sign) {
  using A = acc_t<T>;
#pragma omp simd
  for (std::int64_t j = 0; j < half; ++j) {
    const A c = static_cast<A>(cos[j]), s = static_cast<A>(sign * sin[j]);
    const A first = load(x[j]), second = load(x[j + half]);
    store(y[j], first * c - second * s);
    store(y[j + half], second * c + first * s);
  }
}

std::int64_t table_row(const View<const std::int32_t>& positions, std::int64_t b, std::int64_t t,
                       std::int64_t rows) {
  if (positions.ndim() == 0) return t;
  const std::int64_t row = positions(b, t);
  if (row < 0 || row >= rows) fail("rotary: position {} is outside the table of {} rows", row, rows);
  return row;
}

}  // namespace

template <class T>
void rotary(Stream& stream, View<const T> x, View<const float> cos, View<const float> sin,
            View<const std::int32_t> positions, View<T> y, bool inverse) {
  check_shapes(x, cos, sin, positions, y);
  const std::int64_t tokens = x.dim(1), heads = x.dim(2), half = x.dim(3) / 2, table_rows = cos.dim(0);
  const bool given = positions.ndim() != 0;
  const double table_bytes = static_cast<double>(std::min(tokens, table_rows) * half) * 2 * sizeof(float);
  const Work work{3.0 * static_cast<double>(x.numel()),  // 4 products and 2 sums a pair
                  x.bytes() + y.bytes() + table_bytes + (given ? positions.bytes() : 0)};
  const auto on_cpu = [&] {
    const std::int64_t grain =
        std::max<std::int64_t>(1, kGrainElements / std::max<std::int64_t>(1, heads * half * 2));
    parallel_for(x.dim(0) * tokens, grain, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        const std::int64_t b = i / tokens, t = i % tokens;
        const std::int64_t row = table_row(positions, b, t, table_rows);
        for (std::int64_t h = 0; h < heads; ++h) {
          rotate_row(&x(b, t, h, 0), &cos(row, 0), &sin(row, 0), &y(b, t, h, 0), half,
                     inverse ? -1.0f : 1.0f);
        }
      }
    });
  };
  launch(stream, "rotary", work, on_cpu,
         [&] { cuda::rotary<T>(stream, x, cos, sin, positions, y, inverse); });
}

template void rotary(Stream&, View<const float>, View<const float>, View<const float>,
                     View<const std::int32_t>, View<float>, bool);
template void rotary(Stream&, View<const double>, View<const float>, View<const float>,
                     View<const std::int32_t>, View<double>, bool);
template void rotary(Stream&, View<const bf16>, View<const float>, View<const float>,
                     View<const std::int32_t>, View<bf16>, bool);

}  // namespace ridge::kernels
