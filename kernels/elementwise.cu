#include "kernels/device/strided.cuh"
#include "kernels/elementwise.h"

namespace ridge::kernels::cuda {
namespace {

using device::load;
using device::round_to;

/// y = T(f(x...)) of elements in their accumulation type.
template <class F>
struct Rounded {
  F f;
  template <class T>
  __device__ __forceinline__ void operator()(const T& a, const T& b, T& y) const {
    y = round_to<T>(f(load(a), load(b)));
  }
  template <class T>
  __device__ __forceinline__ void operator()(const T& x, T& y) const {
    y = round_to<T>(f(load(x)));
  }
};

struct Add {
  template <class A>
  __device__ __forceinline__ A operator()(A a, A b) const {
    return a + b;
  }
};
struct Sub {
  template <class A>
  __device__ __forceinline__ A operator()(A a, A b) const {
    return a - b;
  }
};
struct Mul {
  template <class A>
  __device__ __forceinline__ A operator()(A a, A b) const {
    return a * b;
  }
};
struct Div {
  template <class A>
  __device__ __forceinline__ A operator()(A a, A b) const {
    return a / b;
  }
};
struct Neg {
  template <class A>
  __device__ __forceinline__ A operator()(A x) const {
    return -x;
  }
};
struct Exp {
  template <class A>
  __device__ __forceinline__ A operator()(A x) const {
    return ::exp(x);
  }
};
struct Log {
  template <class A>
  __device__ __forceinline__ A operator()(A x) const {
    return ::log(x);
  }
};
struct Sqrt {
  template <class A>
  __device__ __forceinline__ A operator()(A x) const {
    return ::sqrt(x);
  }
};
struct Square {
  template <class A>
  __device__ __forceinline__ A operator()(A x) const {
    return x * x;
  }
};
struct Tanh {
  template <class A>
  __device__ __forceinline__ A operator()(A x) const {
    return ::tanh(x);
  }
};
struct Sigmoid {
  template <class A>
  __device__ __forceinline__ A operator()(A x) const {
    return A(1) / (A(1) + ::exp(-x));
  }
};
template <class A>
struct AddScaled {
  A value;
  __device__ __forceinline__ A operator()(A a, A b) const { return a + value * b; }
};
template <class A>
struct Scale {
  A value;
  __device__ __forceinline__ A operator()(A x) const { return x * value; }
};
template <class A>
struct AddScalar {
  A value;
  __device__ __forceinline__ A operator()(A x) const { return x + value; }
};

struct Accumulate {
  template <class S, class D>
  __device__ __forceinline__ void operator()(const S& x, const D& before, D& after) const {
    after = before + static_cast<D>(load(x));
  }
};

template <class F, class... T>
void run(Stream& stream, const F& f, const View<T>&... views) {
  device::map(stream, Rounded<F>{f}, views...);
}

}  // namespace

template <class T>
void add(Stream& stream, View<const T> a, View<const T> b, View<T> y) {
  run(stream, Add{}, a, b, y);
}
template <class T>
void sub(Stream& stream, View<const T> a, View<const T> b, View<T> y) {
  run(stream, Sub{}, a, b, y);
}
template <class T>
void mul(Stream& stream, View<const T> a, View<const T> b, View<T> y) {
  run(stream, Mul{}, a, b, y);
}
template <class T>
void div(Stream& stream, View<const T> a, View<const T> b, View<T> y) {
  run(stream, Div{}, a, b, y);
}
template <class T>
void add_scaled(Stream& stream, View<const T> a, View<const T> b, double factor, View<T> y) {
  run(stream, AddScaled<acc_t<T>>{static_cast<acc_t<T>>(factor)}, a, b, y);
}
template <class T>
void neg(Stream& stream, View<const T> x, View<T> y) {
  run(stream, Neg{}, x, y);
}
template <class T>
void exp(Stream& stream, View<const T> x, View<T> y) {
  run(stream, Exp{}, x, y);
}
template <class T>
void log(Stream& stream, View<const T> x, View<T> y) {
  run(stream, Log{}, x, y);
}
template <class T>
void sqrt(Stream& stream, View<const T> x, View<T> y) {
  run(stream, Sqrt{}, x, y);
}
template <class T>
void square(Stream& stream, View<const T> x, View<T> y) {
  run(stream, Square{}, x, y);
}
template <class T>
void tanh(Stream& stream, View<const T> x, View<T> y) {
  run(stream, Tanh{}, x, y);
}
template <class T>
void sigmoid(Stream& stream, View<const T> x, View<T> y) {
  run(stream, Sigmoid{}, x, y);
}
template <class T>
void scale(Stream& stream, View<const T> x, double factor, View<T> y) {
  run(stream, Scale<acc_t<T>>{static_cast<acc_t<T>>(factor)}, x, y);
}
template <class T>
void add_scalar(Stream& stream, View<const T> x, double value, View<T> y) {
  run(stream, AddScalar<acc_t<T>>{static_cast<acc_t<T>>(value)}, x, y);
}
template <class S, class D>
void accumulate(Stream& stream, View<const S> x, View<D> y) {
  device::map(stream, Accumulate{}, x, View<const D>(y), y);
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

}  // namespace ridge::kernels::cuda
