#include "core/ops/activation.h"

#include "core/autograd.h"
#include "core/base/stream.h"
#include "kernels/activation.h"

namespace ridge::ops {
namespace {

using autograd::Grads;
using autograd::Needs;

Tensor rows(const Tensor& x) { return x.as_contiguous().reshaped({-1, x.dim(-1)}); }

Tensor empty_like(const Tensor& x) { return Tensor::empty(x.shape(), x.dtype(), x.device()); }

struct Silu {
  static constexpr const char* kName = "silu";
  Tensor x_RC;
  Shape shape;

  Tensor forward(const Tensor& x) {
    shape = x.shape();
    x_RC = rows(x);
    const Tensor y = empty_like(x_RC);
    visit_compute(x.dtype(), [&]<class T>(std::type_identity<T>) {
      kernels::silu<T>(current_stream(x.device()), x_RC.view<T>(), y.view<T>());
    });
    return y.reshaped(shape);
  }

  Grads vjp(const Tensor& dy, const Needs&) {
    const Tensor dy_RC = rows(dy), dx = empty_like(x_RC);
    visit_compute(dx.dtype(), [&]<class T>(std::type_identity<T>) {
      kernels::silu_backward<T>(current_stream(dx.device()), dy_RC.view<T>(), x_RC.view<T>(), dx.view<T>());
    });
    return {dx.reshaped(shape)};
  }
};

struct Gelu {
  static constexpr const char* kName = "gelu";
  kernels::Gelu variant;
  Tensor x_RC;
  Shape shape;

  Tensor forward(const Tensor& x) {
    shape = x.shape();
    x_RC = rows(x);
    const Tensor y = empty_like(x_RC);
    visit_compute(x.dtype(), [&]<class T>(std::type_identity<T>) {
      kernels::gelu<T>(current_stream(x.device()), x_RC.view<T>(), y.view<T>(), variant);
    });
    return y.reshaped(shape);
  }

  Grads vjp(const Tensor& dy, const Needs&) {
    const Tensor dy_RC = rows(dy), dx = empty_like(x_RC);
    visit_compute(dx.dtype(), [&]<class T>(std::type_identity<T>) {
      kernels::gelu_backward<T>(current_stream(dx.device()), dy_RC.view<T>(), x_RC.view<T>(), dx.view<T>(),
                                variant);
    });
    return {dx.reshaped(shape)};
  }
};

struct Swiglu {
  static constexpr const char* kName = "swiglu";
  Tensor gate_RC, up_RC;
  Shape shape;

  Tensor forward(const Tensor& gate, const Tensor& up) {
    shape = gate.shape();
    gate_RC = rows(gate);
    up_RC = rows(up);
    const Tensor y = empty_like(gate_RC);
    visit_compute(y.dtype(), [&]<class T>(std::type_identity<T>) {
      kernels::swiglu<T>(current_stream(y.device()), gate_RC.view<T>(), up_RC.view<T>(), y.view<T>());
    });
    return y.reshaped(shape);
  }

  Grads vjp(const Tensor& dy, const Needs&) {
    const Tensor dy_RC = rows(dy), dgate = empty_like(gate_RC), dup = empty_like(up_RC);
    visit_compute(dy.dtype(), [&]<class T>(std::type_identity<T>) {
      kernels::swiglu_backward<T>(current_stream(dy.device()), dy_RC.view<T>(), gate_RC.view<T>(),
                                  up_RC.view<T>(), dgate.view<T>(), dup.view<T>());
    });
    return {dgate.reshaped(shape), dup.reshaped(shape)};
  }
};

// gate in the first half of the columns, up in the second.
struct SwigluPacked {
  static constexpr const char* kName = "swiglu";
  Tensor packed_RC;

  static Tensor gate(const Tensor& t) { return t.sliced(1, 0, t.dim(1) / 2); }
  static Tensor up(const Tensor& t) { return t.sliced(1, t.dim(1) / 2, t.dim(1)); }

  static Tensor compute(const Tensor& packed_RC) {
    const Tensor y =
        Tensor::empty({packed_RC.dim(0), packed_RC.dim(1) / 2}, packed_RC.dtype(), packed_RC.device());
    visit_compute(y.dtype(), [&]<class T>(std::type_identity<T>) {
      kernels::swiglu<T>(current_stream(y.device()), gate(packed_RC).view<T>(), up(packed_RC).view<T>(),
                         y.view<T>());
    });
    return y;
  }

  Tensor forward(const Tensor& gate_up) {
    Shape shape = gate_up.shape();
    check(shape[-1] % 2 == 0, "swiglu: gate and up side by side");
    shape[-1] /= 2;
    packed_RC = rows(gate_up);
    Tensor y = compute(packed_RC).reshaped(shape);
    if (autograd::cheap_recompute()) {
      y.set_recipe(std::make_shared<autograd::Recipe>([packed = packed_RC] { return compute(packed); }));
    }
    return y;
  }

  Grads vjp(const Tensor& dy, const Needs&) {
    const Tensor dy_RC = rows(dy), d = empty_like(packed_RC);
    visit_compute(dy.dtype(), [&]<class T>(std::type_identity<T>) {
      kernels::swiglu_backward<T>(current_stream(dy.device()), dy_RC.view<T>(), gate(packed_RC).view<T>(),
                                  up(packed_RC).view<T>(), gate(d).view<T>(), up(d).view<T>());
    });
    Shape shape = dy.shape();
    shape[-1] *= 2;
    return {d.reshaped(shape)};
  }
};

}  // namespace

Tensor swiglu_packed(const Tensor& gate_up) { return autograd::apply(SwigluPacked{}, gate_up); }
Tensor silu(const Tensor& x) { return autograd::apply(Silu{}, x); }
Tensor gelu(const Tensor& x) { return autograd::apply(Gelu{kernels::Gelu::erf, {}, {}}, x); }
Tensor gelu_tanh(const Tensor& x) { return autograd::apply(Gelu{kernels::Gelu::tanh, {}, {}}, x); }
Tensor swiglu(const Tensor& gate, const Tensor& up) { return autograd::apply(Swiglu{}, gate, up); }

}  // namespace ridge::ops
