#include "kernels/elementwise.h"

#include "core/base/launch.h"
#include "kernels/element.h"
#include "kernels/strided.h"
#include "kernels/vector_math.h"

namespace ridge::kernels {
namespace {

using detail::map_row;
using detail::Step;

/// Rows of y = op(a, b), with vector loops where one side is broadcast along the row.
template <class T, class Op>
void binary_rows(View<const T> a, View<const T> b, View<T> y, const Op& op) {
  const auto walk = walk_over(a, b, y);
  const bool dense_a = walk.step(0) == 1, dense_b = walk.step(1) == 1, dense_y = walk.step(2) == 1;
  const auto each = [&](const T& left, const T& right, T& out) { store(out, op(load(left), load(right))); };
  walk.visit([&](const Span<3>& s) {
    const T *pa = a.data + s.offset[0], *pb = b.data + s.offset[1];
    T* py = y.data + s.offset[2];
    const std::pair out(py, Step<1>{});
    if (dense_a && dense_b && dense_y) {
      map_row(s.count, each, std::pair(pa, Step<1>{}), std::pair(pb, Step<1>{}), out);
    } else if (dense_a && dense_y && walk.step(1) == 0) {
      map_row(s.count, each, std::pair(pa, Step<1>{}), std::pair(pb, Step<0>{}), out);
    } else if (dense_b && dense_y && walk.step(0) == 0) {
      map_row(s.count, each, std::pair(pa, Step<0>{}), std::pair(pb, Step<1>{}), out);
    } else {
      map_row(s.count, each, std::pair(pa, walk.step(0)), std::pair(pb, walk.step(1)),
              std::pair(py, walk.step(2)));
    }
  });
}

/// `op` on the CPU, `on_cuda` on a GPU.
template <class T, class Op, class Cuda>
void binary(Stream& stream, const char* name, double flops_each, View<const T> a, View<const T> b, View<T> y,
            const Op& op, const Cuda& on_cuda) {
  check(a.shape == y.shape && b.shape == y.shape, "elementwise operands of one shape: broadcast views first");
  const double bytes = distinct_bytes(a) + distinct_bytes(b) + y.bytes();
  launch(
      stream, name, Work{flops_each * static_cast<double>(y.numel()), bytes},
      [&] { binary_rows(a, b, y, op); }, on_cuda);
}

template <class T, class Op, class Cuda>
void unary(Stream& stream, const char* name, View<const T> x, View<T> y, const Op& op, const Cuda& on_cuda) {
  check(x.shape == y.shape, "elementwise operands of one shape: broadcast views first");
  launch(
      stream, name, Work{static_cast<double>(y.numel()), distinct_bytes(x) + y.bytes()},
      [&] { map_elements([&](const T& in, T& out) { store(out, op(load(in))); }, x, y); }, on_cuda);
}

}  // namespace

template <class T>
void add(Stream& stream, View<const T> a, View<const T> b, View<T> y) {
  binary(
      stream, "add", 1, a, b, y, [](auto left, auto right) { return left + right; },
      [&] { cuda::add<T>(stream, a, b, y); });
}

template <class T>
void sub(Stream& stream, View<const T> a, View<const T> b, View<T> y) {
  binary(
      stream, "sub", 1, a, b, y, [](auto left, auto right) { return left - right; },
      [&] { cuda::sub<T>(stream, a, b, y); });
}

template <class T>
void mul(Stream& stream, View<const T> a, View<const T> b, View<T> y) {
  binary(
      stream, "mul", 1, a, b, y, [](auto left, auto right) { return left * right; },
      [&] { cuda::mul<T>(stream, a, b, y); });
}

template <class T>
void div(Stream& stream, View<const T> a, View<const T> b, View<T> y) {
  binary(
      stream, "div", 1, a, b, y, [](auto left, auto right) { return left / right; },
      [&] { cuda::div<T>(stream, a, b, y); });
}

template <class T>
void add_scaled(Stream& stream, View<const T> a, View<const T> b, double factor, View<T> y) {
  const auto f = static_cast<acc_t<T>>(factor);
  binary(
      stream, "add_scaled", 2, a, b, y, [f](auto left, auto right) { return left + f * right; },
      [&] { cuda::add_scaled<T>(stream, a, b, factor, y); });
}

template <class T>
void neg(Stream& stream, View<const T> x, View<T> y) {
  unary(
      stream, "neg", x, y, [](auto v) { return -v; }, [&] { cuda::neg<T>(stream, x, y); });
}

template <class T>
void exp(Stream& stream, View<const T> x, View<T> y) {
  unary(
      stream, "exp", x, y, [](auto v) { return vexp(v); }, [&] { cuda::exp<T>(stream, x, y); });
}

template <class T>
void log(Stream& stream, View<const T> x, View<T> y) {
  unary(
      stream, "log", x, y, [](auto v) { return vlog(v); }, [&] { cuda::log<T>(stream, x, y); });
}

template <class T>
void sqrt(Stream& stream, View<const T> x, View<T> y) {
  unary(
      stream, "sqrt", x, y, [](auto v) { return std::sqrt(v); }, [&] { cuda::sqrt<T>(stream, x, y); });
}

template <class T>
void square(Stream& stream, View<const T> x, View<T> y) {
  unary(
      stream, "square", x, y, [](auto v) { return v * v; }, [&] { cuda::square<T>(stream, x, y); });
}

template <class T>
void tanh(Stream& stream, View<const T> x, View<T> y) {
  unary(
      stream, "tanh", x, y, [](auto v) { return vtanh(v); }, [&] { cuda::tanh<T>(stream, x, y); });
}

template <class T>
void sigmoid(Stream& stream, View<const T> x, View<T> y) {
  unary(
      stream, "sigmoid", x, y, [](auto v) { return vsigmoid(v); }, [&] { cuda::sigmoid<T>(stream, x, y); });
}

template <class T>
void scale(Stream& stream, View<const T> x, double factor, View<T> y) {
  const auto f = static_cast<acc_t<T>>(factor);
  unary(
      stream, "scale", x, y, [f](auto v) { return v * f; }, [&] { cuda::scale<T>(stream, x, factor, y); });
}

template <class T>
void add_scalar(Stream& stream, View<const T> x, double value, View<T> y) {
  const auto s = static_cast<acc_t<T>>(value);
  unary(
      stream, "add_scalar", x, y, [s](auto v) { return v + s; },
      [&] { cuda::add_scalar<T>(stream, x, value, y); });
}

template <class S, class D>
void accumulate(Stream& stream, View<const S> x, View<D> y) {
  check(x.shape == y.shape, "accumulate: operands of one shape");
  launch(
      stream, "accumulate", Work{static_cast<double>(y.numel()), distinct_bytes(x) + 2 * y.bytes()},
      [&] { map_elements([](const S& in, D& sum) { sum += static_cast<D>(load(in)); }, x, y); },
      [&] { cuda::accumulate<S, D>(stream, x, y); });
}

template void add<float>(Stream&, View<const float>, View<const float>, View<float>);
template void sub<float>(Stream&, View<const float>, View<const float>, View<float>);
template void mul<float>(Stream&, View<const float>, View<const float>, View<float>);
template void div<float>(Stream&, View<const float>, View<const float>, View<float>);
template void add_scaled<float>(Stream&, View<const float>, View<const float>, double, View<float>);
template void neg<float>(Stream&, View<const float>, View<float>);
template void exp<float>(Stream&, View<const float>, View<float>);
template void log<float>(Stream&, View<const float>, View<float>);
template void sqrt<float>(Stream&, View<const float>, View<float>);
template void square<float>(Stream&, View<const float>, View<float>);
template void tanh<float>(Stream&, View<const float>, View<float>);
template void sigmoid<float>(Stream&, View<const float>, View<float>);
template void scale<float>(Stream&, View<const float>, double, View<float>);
template void add_scalar<float>(Stream&, View<const float>, double, View<float>);

template void add<double>(Stream&, View<const double>, View<const double>, View<double>);
template void sub<double>(Stream&, View<const double>, View<const double>, View<double>);
template void mul<double>(Stream&, View<const double>, View<const double>, View<double>);
template void div<double>(Stream&, View<const double>, View<const double>, View<double>);
template void add_scaled<double>(Stream&, View<const double>, View<const double>, double, View<double>);
template void neg<double>(Stream&, View<const double>, View<double>);
template void exp<double>(Stream&, View<const double>, View<double>);
template void log<double>(Stream&, View<const double>, View<double>);
template void sqrt<double>(Stream&, View<const double>, View<double>);
template void square<double>(Stream&, View<const double>, View<double>);
template void tanh<double>(Stream&, View<const double>, View<double>);
template void sigmoid<double>(Stream&, View<const double>, View<double>);
template void scale<double>(Stream&, View<const double>, double, View<double>);
template void add_scalar<double>(Stream&, View<const double>, double, View<double>);

template void add<bf16>(Stream&, View<const bf16>, View<const bf16>, View<bf16>);
template void sub<bf16>(Stream&, View<const bf16>, View<const bf16>, View<bf16>);
template void mul<bf16>(Stream&, View<const bf16>, View<const bf16>, View<bf16>);
template void div<bf16>(Stream&, View<const bf16>, View<const bf16>, View<bf16>);
template void add_scaled<bf16>(Stream&, View<const bf16>, View<const bf16>, double, View<bf16>);
template void neg<bf16>(Stream&, View<const bf16>, View<bf16>);
template void exp<bf16>(Stream&, View<const bf16>, View<bf16>);
template void log<bf16>(Stream&, View<const bf16>, View<bf16>);
template void sqrt<bf16>(Stream&, View<const bf16>, View<bf16>);
template void square<bf16>(Stream&, View<const bf16>, View<bf16>);
template void tanh<bf16>(Stream&, View<const bf16>, View<bf16>);
template void sigmoid<bf16>(Stream&, View<const bf16>, View<bf16>);
template void scale<bf16>(Stream&, View<const bf16>, double, View<bf16>);
template void add_scalar<bf16>(Stream&, View<const bf16>, double, View<bf16>);

template void accumulate<float, float>(Stream&, View<const float>, View<float>);
template void accumulate<bf16, float>(Stream&, View<const bf16>, View<float>);
template void accumulate<double, double>(Stream&, View<const double>, View<double>);
template void accumulate<float, double>(Stream&, View<const float>, View<double>);

}  // namespace ridge::kernels
