#include "kernels/copy.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>

#include "core/base/launch.h"
#include "core/base/threads.h"
#include "kernels/element.h"
#include "kernels/strided.h"

namespace ridge::kernels {
namespace {

/// A value as the arithmetic type that holds it exactly.
template <class T>
auto widen(const T& x) {
  if constexpr (std::is_same_v<T, f16>) {
    return decode_f16(x.bits);
  } else if constexpr (std::is_same_v<T, bf16>) {
    return static_cast<float>(x);
  } else {
    return x;
  }
}

/// Truncates towards zero and saturates; NaN gives 0.
template <class D, class A>
D to_integer(A value) {
  using Limits = std::numeric_limits<D>;
  constexpr A kLow = static_cast<A>(Limits::min());
  constexpr A kAbove = static_cast<A>(Limits::max() / 2 + 1) * 2;  // max + 1, exact in any float
  const bool over = value >= kAbove;
  const A inside = value > kLow && !over ? value : kLow;  // also for NaN: the cast below stays defined
  const D truncated = over ? Limits::max() : static_cast<D>(inside);
  return value != value ? D(0) : truncated;
}

template <class D, class S>
D clamp_integer(S value) {
  if constexpr (sizeof(S) < sizeof(D)) {
    return static_cast<D>(value);
  } else {
    constexpr auto kLow =
        static_cast<S>(std::max<std::int64_t>(std::numeric_limits<D>::min(), std::numeric_limits<S>::min()));
    constexpr auto kHigh =
        static_cast<S>(std::min<std::int64_t>(std::numeric_limits<D>::max(), std::numeric_limits<S>::max()));
    return static_cast<D>(value < kLow ? kLow : (value > kHigh ? kHigh : value));
  }
}

/// Writes `x` as D.
template <class S, class D>
void put(const S& x, D& y) {
  const auto value = widen(x);
  using A = decltype(value);
  if constexpr (std::is_same_v<D, bf16>) {
    y.bits = bf16(static_cast<float>(value)).bits;
  } else if constexpr (std::is_same_v<D, f16>) {
    y.bits = encode_f16(static_cast<float>(value));
  } else if constexpr (std::is_floating_point_v<D>) {
    y = static_cast<D>(value);
  } else if constexpr (std::is_floating_point_v<std::remove_const_t<A>>) {
    y = to_integer<D>(value);
  } else {
    y = clamp_integer<D>(value);
  }
}

using RowFn = void (*)(const void* x, std::int64_t x_step, void* y, std::int64_t y_step, std::int64_t n);

template <class S, class D>
void convert_row(const void* x_bytes, std::int64_t x_step, void* y_bytes, std::int64_t y_step,
                 std::int64_t n) {
  const S* x = static_cast<const S*>(x_bytes);
  D* y = static_cast<D*>(y_bytes);
  if (x_step == 1 && y_step == 1) {
    if constexpr (std::is_same_v<S, D>) {
      std::memmove(y, x, static_cast<std::size_t>(n) * sizeof(D));
    } else {
#pragma omp simd
      for (std::int64_t i = 0; i < n; ++i) put(x[i], y[i]);
    }
    return;
  }
  for (std::int64_t i = 0; i < n; ++i) {
    if constexpr (std::is_same_v<S, D>) {
      y[i * y_step] = x[i * x_step];
    } else {
      put(x[i * x_step], y[i * y_step]);
    }
  }
}

RowFn row_function(DType from, DType to) {
  return visit_any(from, [to]<class S>(std::type_identity<S>) {
    return visit_any(to, []<class D>(std::type_identity<D>) -> RowFn { return &convert_row<S, D>; });
  });
}

struct Side {
  std::int64_t size;  // bytes of an element
  const Strides& strides;
};

void copy_rows(const char* x, Side from, char* y, Side to, const Shape& shape, RowFn fn) {
  const Walk<2> walk(shape, {from.strides, to.strides});
  walk.visit([&](const Span<2>& span) {
    fn(x + span.offset[0] * from.size, walk.step(0), y + span.offset[1] * to.size, walk.step(1), span.count);
  });
}

/// The dimension other than the last along which x is dense, where its rows are not: a transposition. Else
/// -1.
int transposed_dim(const Shape& shape, const Strides& x_strides) {
  constexpr std::int64_t kWorth = 8;  // elements
  if (shape.ndim() < 2 || x_strides[-1] == 1 || x_strides[-1] == 0 || shape[-1] < kWorth) return -1;
  for (int d = 0; d + 1 < shape.ndim(); ++d) {
    if (x_strides[d] == 1 && shape[d] >= kWorth) return d;
  }
  return -1;
}

/// Converts in square blocks of dimensions `across` and the last through a tile that stays in L1: both sides
/// are touched in runs, whatever sets of the cache their strides fall into.
class BlockedConvert {
 public:
  BlockedConvert(const char* x, Side from, char* y, Side to, const Shape& shape, int across, RowFn fn,
                 RowFn turn)
      : x_(x),
        y_(y),
        from_(from),
        to_(to),
        shape_(shape),
        blocks_(shape),
        across_(across),
        fn_(fn),
        turn_(turn) {
    blocks_[across_] = (shape[across_] + kBlock - 1) / kBlock;
    blocks_[-1] = (shape[-1] + kBlock - 1) / kBlock;
  }

  void run() const {
    parallel_for(numel(blocks_), 4, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t block = begin; block < end; ++block) convert_block(block);
    });
  }

 private:
  static constexpr std::int64_t kBlock = 64;  // elements

  void convert_block(std::int64_t block) const {
    const int last = shape_.ndim() - 1;
    std::int64_t from = 0, to = 0, rows = 0, columns = 0;
    for (int d = last; d >= 0; --d) {
      std::int64_t index = block % blocks_[d];
      block /= blocks_[d];
      if (d == last || d == across_) {
        index *= kBlock;
        (d == last ? columns : rows) = std::min(kBlock, shape_[d] - index);
      }
      from += index * from_.strides[d];
      to += index * to_.strides[d];
    }
    move_block(x_ + from * from_.size, y_ + to * to_.size, rows, columns);
  }

  void move_block(const char* x, char* y, std::int64_t rows, std::int64_t columns) const {
    alignas(64) std::array<char, kBlock * kBlock * 8> tile;  // [columns][rows] of y's dtype
    const std::int64_t column_step = from_.strides[-1] * from_.size;
    for (std::int64_t c = 0; c < columns; ++c) {
      const char* next = x + (c + kBlock) * column_step;  // the next block's column
      for (std::int64_t byte = 0; byte < rows * from_.size; byte += 64) __builtin_prefetch(next + byte);
      fn_(x + c * column_step, 1, tile.data() + c * kBlock * to_.size, 1, rows);
    }
    for (std::int64_t r = 0; r < rows; ++r) {
      turn_(tile.data() + r * to_.size, kBlock, y + r * to_.strides[across_] * to_.size, to_.strides[-1],
            columns);
    }
  }

  const char* x_;
  char* y_;
  Side from_, to_;
  const Shape& shape_;
  Shape blocks_;
  int across_;
  RowFn fn_;
  RowFn turn_;  // a row of y's dtype to another
};

void convert_any(const void* x, Side from, void* y, Side to, const Shape& shape, RowFn fn, RowFn turn) {
  const char* x_bytes = static_cast<const char*>(x);
  char* y_bytes = static_cast<char*>(y);
  const int across = transposed_dim(shape, from.strides);
  if (across < 0) return copy_rows(x_bytes, from, y_bytes, to, shape, fn);
  BlockedConvert(x_bytes, from, y_bytes, to, shape, across, fn, turn).run();
}

}  // namespace

void convert(Stream& stream, DType from, const void* x, const Shape& shape, const Strides& x_strides,
             DType to, void* y, const Strides& y_strides) {
  check(x_strides.ndim() == shape.ndim() && y_strides.ndim() == shape.ndim(),
        "convert: one stride a dimension");
  const auto from_size = static_cast<std::int64_t>(size_of(from)),
             to_size = static_cast<std::int64_t>(size_of(to));
  const View<const char> distinct(nullptr, shape, x_strides);
  const double bytes = distinct_bytes(distinct) * static_cast<double>(from_size) +
                       static_cast<double>(numel(shape)) * static_cast<double>(to_size);
  launch(
      stream, from == to ? "copy" : "convert", Work{0, bytes},
      [&] {
        convert_any(x, {from_size, x_strides}, y, {to_size, y_strides}, shape, row_function(from, to),
                    row_function(to, to));
      },
      [&] { cuda::convert(stream, from, x, shape, x_strides, to, y, y_strides); });
}

template <class S, class D>
void convert(Stream& stream, View<const S> x, View<D> y) {
  check(x.shape == y.shape, "convert: views of one shape");
  convert(stream, dtype_of<S>, x.data, x.shape, x.strides, dtype_of<D>, y.data, y.strides);
}

template <class T>
void copy(Stream& stream, View<const T> x, View<T> y) {
  convert<T, T>(stream, x, y);
}

template void copy<float>(Stream&, View<const float>, View<float>);
template void copy<double>(Stream&, View<const double>, View<double>);
template void copy<bf16>(Stream&, View<const bf16>, View<bf16>);
template void copy<f16>(Stream&, View<const f16>, View<f16>);
template void copy<std::int32_t>(Stream&, View<const std::int32_t>, View<std::int32_t>);
template void copy<std::int64_t>(Stream&, View<const std::int64_t>, View<std::int64_t>);
template void copy<std::uint8_t>(Stream&, View<const std::uint8_t>, View<std::uint8_t>);
template void copy<std::int8_t>(Stream&, View<const std::int8_t>, View<std::int8_t>);

template void convert<float, float>(Stream&, View<const float>, View<float>);
template void convert<float, double>(Stream&, View<const float>, View<double>);
template void convert<float, bf16>(Stream&, View<const float>, View<bf16>);
template void convert<float, f16>(Stream&, View<const float>, View<f16>);
template void convert<float, std::int32_t>(Stream&, View<const float>, View<std::int32_t>);
template void convert<float, std::int64_t>(Stream&, View<const float>, View<std::int64_t>);
template void convert<float, std::uint8_t>(Stream&, View<const float>, View<std::uint8_t>);
template void convert<float, std::int8_t>(Stream&, View<const float>, View<std::int8_t>);

template void convert<double, float>(Stream&, View<const double>, View<float>);
template void convert<double, double>(Stream&, View<const double>, View<double>);
template void convert<double, bf16>(Stream&, View<const double>, View<bf16>);
template void convert<double, f16>(Stream&, View<const double>, View<f16>);
template void convert<double, std::int32_t>(Stream&, View<const double>, View<std::int32_t>);
template void convert<double, std::int64_t>(Stream&, View<const double>, View<std::int64_t>);
template void convert<double, std::uint8_t>(Stream&, View<const double>, View<std::uint8_t>);
template void convert<double, std::int8_t>(Stream&, View<const double>, View<std::int8_t>);

template void convert<bf16, float>(Stream&, View<const bf16>, View<float>);
template void convert<bf16, double>(Stream&, View<const bf16>, View<double>);
template void convert<bf16, bf16>(Stream&, View<const bf16>, View<bf16>);
template void convert<bf16, f16>(Stream&, View<const bf16>, View<f16>);
template void convert<bf16, std::int32_t>(Stream&, View<const bf16>, View<std::int32_t>);
template void convert<bf16, std::int64_t>(Stream&, View<const bf16>, View<std::int64_t>);
template void convert<bf16, std::uint8_t>(Stream&, View<const bf16>, View<std::uint8_t>);
template void convert<bf16, std::int8_t>(Stream&, View<const bf16>, View<std::int8_t>);

template void convert<f16, float>(Stream&, View<const f16>, View<float>);
template void convert<f16, double>(Stream&, View<const f16>, View<double>);
template void convert<f16, bf16>(Stream&, View<const f16>, View<bf16>);
template void convert<f16, f16>(Stream&, View<const f16>, View<f16>);
template void convert<f16, std::int32_t>(Stream&, View<const f16>, View<std::int32_t>);
template void convert<f16, std::int64_t>(Stream&, View<const f16>, View<std::int64_t>);
template void convert<f16, std::uint8_t>(Stream&, View<const f16>, View<std::uint8_t>);
template void convert<f16, std::int8_t>(Stream&, View<const f16>, View<std::int8_t>);

template void convert<std::int32_t, float>(Stream&, View<const std::int32_t>, View<float>);
template void convert<std::int32_t, double>(Stream&, View<const std::int32_t>, View<double>);
template void convert<std::int32_t, bf16>(Stream&, View<const std::int32_t>, View<bf16>);
template void convert<std::int32_t, f16>(Stream&, View<const std::int32_t>, View<f16>);
template void convert<std::int32_t, std::int32_t>(Stream&, View<const std::int32_t>, View<std::int32_t>);
template void convert<std::int32_t, std::int64_t>(Stream&, View<const std::int32_t>, View<std::int64_t>);
template void convert<std::int32_t, std::uint8_t>(Stream&, View<const std::int32_t>, View<std::uint8_t>);
template void convert<std::int32_t, std::int8_t>(Stream&, View<const std::int32_t>, View<std::int8_t>);

template void convert<std::int64_t, float>(Stream&, View<const std::int64_t>, View<float>);
template void convert<std::int64_t, double>(Stream&, View<const std::int64_t>, View<double>);
template void convert<std::int64_t, bf16>(Stream&, View<const std::int64_t>, View<bf16>);
template void convert<std::int64_t, f16>(Stream&, View<const std::int64_t>, View<f16>);
template void convert<std::int64_t, std::int32_t>(Stream&, View<const std::int64_t>, View<std::int32_t>);
template void convert<std::int64_t, std::int64_t>(Stream&, View<const std::int64_t>, View<std::int64_t>);
template void convert<std::int64_t, std::uint8_t>(Stream&, View<const std::int64_t>, View<std::uint8_t>);
template void convert<std::int64_t, std::int8_t>(Stream&, View<const std::int64_t>, View<std::int8_t>);

template void convert<std::uint8_t, float>(Stream&, View<const std::uint8_t>, View<float>);
template void convert<std::uint8_t, double>(Stream&, View<const std::uint8_t>, View<double>);
template void convert<std::uint8_t, bf16>(Stream&, View<const std::uint8_t>, View<bf16>);
template void convert<std::uint8_t, f16>(Stream&, View<const std::uint8_t>, View<f16>);
template void convert<std::uint8_t, std::int32_t>(Stream&, View<const std::uint8_t>, View<std::int32_t>);
template void convert<std::uint8_t, std::int64_t>(Stream&, View<const std::uint8_t>, View<std::int64_t>);
template void convert<std::uint8_t, std::uint8_t>(Stream&, View<const std::uint8_t>, View<std::uint8_t>);
template void convert<std::uint8_t, std::int8_t>(Stream&, View<const std::uint8_t>, View<std::int8_t>);

template void convert<std::int8_t, float>(Stream&, View<const std::int8_t>, View<float>);
template void convert<std::int8_t, double>(Stream&, View<const std::int8_t>, View<double>);
template void convert<std::int8_t, bf16>(Stream&, View<const std::int8_t>, View<bf16>);
template void convert<std::int8_t, f16>(Stream&, View<const std::int8_t>, View<f16>);
template void convert<std::int8_t, std::int32_t>(Stream&, View<const std::int8_t>, View<std::int32_t>);
template void convert<std::int8_t, std::int64_t>(Stream&, View<const std::int8_t>, View<std::int64_t>);
template void convert<std::int8_t, std::uint8_t>(Stream&, View<const std::int8_t>, View<std::uint8_t>);
template void convert<std::int8_t, std::int8_t>(Stream&, View<const std::int8_t>, View<std::int8_t>);

}  // namespace ridge::kernels
