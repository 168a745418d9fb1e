#include "kernels/activation.h"

#include "kernels/device/silu.cuh"
#include "kernels/device/strided.cuh"

namespace ridge::kernels::cuda {
namespace {

using device::load;
using device::round_to;
using device::sigmoid;
using device::silu_of;

/// d silu(x) / dx, given s = sigmoid(x).
template <class A>
__device__ __forceinline__ A silu_slope(A x, A s) {
  return s * (A(1) + x * (A(1) - s));
}

struct GeluErf {
  template <class A>
  static __device__ __forceinline__ A value(A x) {
    return A(0.5) * x * (A(1) + ::erf(x * A(0.70710678118654752440)));
  }
  template <class A>
  static __device__ __forceinline__ A slope(A x) {
    const A cdf = A(0.5) * (A(1) + ::erf(x * A(0.70710678118654752440)));
    return cdf + x * A(0.39894228040143267794) * ::exp(A(-0.5) * x * x);
  }
};

struct GeluTanh {
  template <class A>
  static __device__ __forceinline__ A inner(A x) {
    return A(0.79788456080286535588) * (x + A(0.044715) * x * x * x);
  }
  template <class A>
  static __device__ __forceinline__ A value(A x) {
    return A(0.5) * x * (A(1) + ::tanh(inner(x)));
  }
  template <class A>
  static __device__ __forceinline__ A slope(A x) {
    const A t = ::tanh(inner(x));
    const A inner_slope = A(0.79788456080286535588) * (A(1) + A(3 * 0.044715) * x * x);
    return A(0.5) * (A(1) + t) + A(0.5) * x * (A(1) - t * t) * inner_slope;
  }
};

struct Silu {
  template <class T>
  __device__ __forceinline__ void operator()(const T& x, T& y) const {
    y = round_to<T>(silu_of<T>(load(x)));
  }
};

struct SiluBackward {
  template <class T>
  __device__ __forceinline__ void operator()(const T& dy, const T& x, T& dx) const {
    dx = round_to<T>(load(dy) * silu_slope(load(x), sigmoid<T>(load(x))));
  }
};

template <class Form>
struct GeluOf {
  template <class T>
  __device__ __forceinline__ void operator()(const T& x, T& y) const {
    y = round_to<T>(Form::value(load(x)));
  }
};

template <class Form>
struct GeluBackward {
  template <class T>
  __device__ __forceinline__ void operator()(const T& dy, const T& x, T& dx) const {
    dx = round_to<T>(load(dy) * Form::slope(load(x)));
  }
};

struct Swiglu {
  template <class T>
  __device__ __forceinline__ void operator()(const T& gate, const T& up, T& y) const {
    y = round_to<T>(load(round_to<T>(silu_of<T>(load(gate)))) * load(up));
  }
};

struct SwigluBackward {
  template <class T>
  __device__ __forceinline__ void operator()(const T& dy, const T& gate, const T& up, T& dgate,
                                             T& dup) const {
    const acc_t<T> d = load(dy), g = load(gate), u = load(up), s = sigmoid<T>(g);
    dgate = round_to<T>(d * u * silu_slope(g, s));
    dup = round_to<T>(d * (g * s));
  }
};

}  // namespace

template <class T>
void silu(Stream& stream, View<const T> x_RC, View<T> y_RC) {
  device::map(stream, Silu{}, x_RC, y_RC);
}

template <class T>
void silu_backward(Stream& stream, View<const T> dy_RC, View<const T> x_RC, View<T> dx_RC) {
  device::map(stream, SiluBackward{}, dy_RC, x_RC, dx_RC);
}

template <class T>
void gelu(Stream& stream, View<const T> x_RC, View<T> y_RC, Gelu variant) {
  if (variant == Gelu::erf) return device::map(stream, GeluOf<GeluErf>{}, x_RC, y_RC);
  device::map(stream, GeluOf<GeluTanh>{}, x_RC, y_RC);
}

template <class T>
void gelu_backward(Stream& stream, View<const T> dy_RC, View<const T> x_RC, View<T> dx_RC, Gelu variant) {
  if (variant == Gelu::erf) return device::map(stream, GeluBackward<GeluErf>{}, dy_RC, x_RC, dx_RC);
  device::map(stream, GeluBackward<GeluTanh>{}, dy_RC, x_RC, dx_RC);
}

template <class T>
void swiglu(Stream& stream, View<const T> gate_RC, View<const T> up_RC, View<T> y_RC) {
  device::map(stream, Swiglu{}, gate_RC, up_RC, y_RC);
}

template <class T>
void swiglu_backward(Stream& stream, View<const T> dy_RC, View<const T> gate_RC, View<const T> up_RC,
                     View<T> dgate_RC, View<T> dup_RC) {
  device::map(stream, SwigluBackward{}, dy_RC, gate_RC, up_RC, dgate_RC, dup_RC);
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

}  // namespace ridge::kernels::cuda
