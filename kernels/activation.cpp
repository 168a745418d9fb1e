#include "kernels/activation.h"

#include "core/base/launch.h"
#include "kernels/element.h"
#include "kernels/strided.h"
#include "kernels/vector_math.h"

namespace ridge::kernels {
namespace {

/// d silu(x) / dx, given s = sigmoid(x).
template <class A>
A silu_slope(A x, A s) {
  return s * (1 + x * (1 - s));
}

struct GeluErf {
  template <class A>
  static A value(A x) {
    return A(0.5) * x * (1 + verf(x * A(0.70710678118654752440)));
  }
  template <class A>
  static A slope(A x) {
    const A cdf = A(0.5) * (1 + verf(x * A(0.70710678118654752440)));
    return cdf + x * A(0.39894228040143267794) * vexp(A(-0.5) * x * x);
  }
};

struct GeluTanh {
  template <class A>
  static A inner(A x) {
    return A(0.79788456080286535588) * (x + A(0.044715) * x * x * x);
  }
  template <class A>
  static A value(A x) {
    return A(0.5) * x * (1 + vtanh(inner(x)));
  }
  template <class A>
  static A slope(A x) {
    const A t = vtanh(inner(x));
    const A inner_slope = A(0.79788456080286535588) * (1 + A(3 * 0.044715) * x * x);
    return A(0.5) * (1 + t) + A(0.5) * x * (1 - t * t) * inner_slope;
  }
};

/// Runs `op` over views of [R, C], or what stands for it on a GPU; the first is the shape's model.
template <class Op, class Cuda, class First, class... T>
void run(Stream& stream, const char* name, double flops_each, const Op& op, const Cuda& on_cuda,
         const View<First>& first, const View<T>&... rest) {
  check(first.ndim() == 2 && ((rest.shape == first.shape) && ...),
        "activation: views [rows, channels] of one shape");
  const double bytes = first.bytes() + (rest.bytes() + ...);
  launch(
      stream, name, Work{flops_each * static_cast<double>(first.numel()), bytes},
      [&] { map_elements(op, first, rest...); }, on_cuda);
}

template <class Form, class T>
void gelu_as(Stream& stream, View<const T> x_RC, View<T> y_RC, Gelu variant) {
  run(
      stream, "gelu", 8, [](const T& x, T& y) { store(y, Form::value(load(x))); },
      [&] { cuda::gelu<T>(stream, x_RC, y_RC, variant); }, x_RC, y_RC);
}

template <class Form, class T>
void gelu_backward_as(Stream& stream, View<const T> dy_RC, View<const T> x_RC, View<T> dx_RC, Gelu variant) {
  run(
      stream, "gelu_backward", 12,
      [](const T& dy, const T& x, T& dx) { store(dx, load(dy) * Form::slope(load(x))); },
      [&] { cuda::gelu_backward<T>(stream, dy_RC, x_RC, dx_RC, variant); }, dy_RC, x_RC, dx_RC);
}

}  // namespace

template <class T>
void silu(Stream& stream, View<const T> x_RC, View<T> y_RC) {
  run(
      stream, "silu", 4, [](const T& x, T& y) { store(y, load(x) * vsigmoid(load(x))); },
      [&] { cuda::silu<T>(stream, x_RC, y_RC); }, x_RC, y_RC);
}

template <class T>
void silu_backward(Stream& stream, View<const T> dy_RC, View<const T> x_RC, View<T> dx_RC) {
  const auto op = [](const T& dy, const T& x, T& dx) {
    store(dx, load(dy) * silu_slope(load(x), vsigmoid(load(x))));
  };
  run(
      stream, "silu_backward", 8, op, [&] { cuda::silu_backward<T>(stream, dy_RC, x_RC, dx_RC); }, dy_RC,
      x_RC, dx_RC);
}

template <class T>
void gelu(Stream& stream, View<const T> x_RC, View<T> y_RC, Gelu variant) {
  variant == Gelu::erf ? gelu_as<GeluErf>(stream, x_RC, y_RC, variant)
                       : gelu_as<GeluTanh>(stream, x_RC, y_RC, variant);
}

template <class T>
void gelu_backward(Stream& stream, View<const T> dy_RC, View<const T> x_RC, View<T> dx_RC, Gelu variant) {
  variant == Gelu::erf ? gelu_backward_as<GeluErf>(stream, dy_RC, x_RC, dx_RC, variant)
                       : gelu_backward_as<GeluTanh>(stream, dy_RC, x_RC, dx_RC, variant);
}

template <class T>
void swiglu(Stream& stream, View<const T> gate_RC, View<const T> up_RC, View<T> y_RC) {
  const auto op = [](const T& gate, const T& up, T& y) {
    store(y, round_to<T>(load(gate) * vsigmoid(load(gate))) * load(up));
  };
  run(
      stream, "swiglu", 5, op, [&] { cuda::swiglu<T>(stream, gate_RC, up_RC, y_RC); }, gate_RC, up_RC, y_RC);
}

template <class T>
void swiglu_backward(Stream& stream, View<const T> dy_RC, View<const T> gate_RC, View<const T> up_RC,
                     View<T> dgate_RC, View<T> dup_RC) {
  const auto op = [](const T& dy, const T& gate, const T& up, T& dgate, T& dup) {
    const acc_t<T> d = load(dy), g = load(gate), u = load(up), s = vsigmoid(g);
    store(dgate, d * u * silu_slope(g, s));
    store(dup, d * (g * s));
  };
  run(
      stream, "swiglu_backward", 11, op,
      [&] { cuda::swiglu_backward<T>(stream, dy_RC, gate_RC, up_RC, dgate_RC, dup_RC); }, dy_RC, gate_RC,
      up_RC, dgate_RC, dup_RC);
}

template void silu<float>(Stream&, View<const float>, View<float>);
template void silu_backward<float>(Stream&, View<const float>, View<const float>, View<float>);
template void gelu<float>(Stream&, View<const float>, View<float>, Gelu);
template void gelu_backward<float>(Stream&, View<const float>, View<const float>, View<float>, Gelu);
template void swiglu<float>(Stream&, View<const float>, View<const float>, View<float>);
template void swiglu_backward<float>(Stream&, View<const float>, View<const float>, View<const float>,
                                     View<float>, View<float>);

template void silu<double>(Stream&, View<const double>, View<double>);
template void silu_backward<double>(Stream&, View<const double>, View<const double>, View<double>);
template void gelu<double>(Stream&, View<const double>, View<double>, Gelu);
template void gelu_backward<double>(Stream&, View<const double>, View<const double>, View<double>, Gelu);
template void swiglu<double>(Stream&, View<const double>, View<const double>, View<double>);
template void swiglu_backward<double>(Stream&, View<const double>, View<const double>, View<const double>,
                                      View<double>, View<double>);

template void silu<bf16>(Stream&, View<const bf16>, View<bf16>);
template void silu_backward<bf16>(Stream&, View<const bf16>, View<const bf16>, View<bf16>);
template void gelu<bf16>(Stream&, View<const bf16>, View<bf16>, Gelu);
template void gelu_backward<bf16>(Stream&, View<const bf16>, View<const bf16>, View<bf16>, Gelu);
template void swiglu<bf16>(Stream&, View<const bf16>, View<const bf16>, View<bf16>);
template void swiglu_backward<bf16>(Stream&, View<const bf16>, View<const bf16>, View<const bf16>, View<bf16>,
                                    View<bf16>);

}  // namespace ridge::kernels
